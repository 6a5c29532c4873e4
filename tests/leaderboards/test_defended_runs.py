"""`verify` of runs with defences: what they showed follows from settings and record, or somebody changed one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import MakeRun, edit_json, edit_line, redigest

import fate_gym
from fate_gym.agents.defences import InjectionDetector, RepeatUserPrompt, View, defend
from fate_gym.env import Observation
from fate_gym.errors import ContextOverflowError
from fate_gym.evaluation import RunFolder
from fate_gym.leaderboards.verification import verify
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

TOY = "toy/Parcels-v0"


class Chooser(Agent):
    """Looks, ships and is done; asked which tools it needs, it says so with a thought around it."""

    name = "chooser"

    def start(self, task: Task, seed: int) -> Session:
        return _Chooser()


class _Chooser:
    def __init__(self) -> None:
        self._turns = iter(("look", "ship", "cancel"))

    async def act(self, observation: Observation) -> Reply:
        if "filter the list of tools" in observation["messages"][-1]["content"]:
            return Reply({"content": "<think>ship?</think> look, and <think>hm</think>ship"})
        name = next(self._turns, None)
        call = {"function": {"name": name, "arguments": {"parcel": 1} if name != "look" else {}}}
        return Reply({"content": "", "tool_calls": [call]} if name else "Done.")


class Overflowing(Agent):
    """Asked apart or not, it gets no further than a turn."""

    name = "overflowing"

    def start(self, task: Task, seed: int) -> Session:
        return self

    async def act(self, observation: Observation) -> Reply:
        raise ContextOverflowError("too long")


def suspicious(text: str) -> bool:
    return "parcel" in text.lower()


CHAINS: list[tuple[str, ...]] = [
    ("spotlighting",),
    ("repeat_user_prompt", "safety_prompt"),
    ("tool_filter",),
    ("spotlighting", "tool_filter"),
    ("tool_filter", "spotlighting", "tool_filter"),
]


def make(make_run: MakeRun, out: Path, agent: Agent, defences: Sequence[str]) -> Path:
    return make_run(out, defend(agent, *defences), env=TOY, defences=tuple(defences))


def whats(run: Path) -> list[str]:
    return [entry.what for entry in verify(run).differences]


@pytest.mark.parametrize(
    ("agent", "defences"), [*((Chooser(), chain) for chain in CHAINS), (Overflowing(), ("tool_filter",))]
)
def test_an_honest_run_agrees(agent: Agent, defences: tuple[str, ...], make_run: MakeRun, tmp_path: Path) -> None:
    run = make(make_run, tmp_path / "run", agent, defences)
    assert whats(run) == []
    edit_line(run / "episodes.jsonl", lambda record: True, lambda record: record.pop("shown", None))
    assert bool(whats(run)) is (agent.name == "chooser")


@pytest.mark.parametrize("true", [(), *CHAINS[:3]])
def test_defences_that_were_others_are_found_out(true: tuple[str, ...], make_run: MakeRun, tmp_path: Path) -> None:
    run = make(make_run, tmp_path / "run", Chooser(), true)
    for claimed in [(), ("safety_prompt",), ("spotlighting", "safety_prompt"), ("tool_filter",)]:
        edit_json(run / "manifest.json", lambda manifest, names=claimed: manifest["config"].update(defences=names))
        edit_json(run / "manifest.json", redigest)
        assert bool(whats(run)) is (claimed != true), claimed


def test_what_a_detector_hid_is_checked_though_its_model_is_not_asked(tmp_path: Path) -> None:
    chains: list[list[Any]] = [
        [InjectionDetector(suspicious)],
        ["spotlighting", InjectionDetector(suspicious), RepeatUserPrompt()],
        [InjectionDetector(suspicious), "spotlighting", InjectionDetector(lambda text: False, "never")],
    ]
    for i, chain in enumerate(chains):
        run = fate_gym.evaluate(defend(Chooser(), *chain), TOY, out=tmp_path / str(i))
        assert run.manifest["config"]["agent"] == "chooser"
        assert run.manifest["config"]["defences"] == [item if isinstance(item, str) else item.name for item in chain]
        report = verify(run.path)
        assert report.differences == []
        assert any("injection detectors" in line for line in report.unknown)
        assert any(episode.shown and episode.shown.flagged for episode in run.episodes)
    path = tmp_path / "0" / "episodes.jsonl"
    honest = path.read_text()
    for part in ("flagged", "digests", "asides"):
        for change in (lambda texts: texts[1:], lambda texts: [*texts, "0" * 64], lambda texts: [*texts, *texts[:1]]):
            lines = [json.loads(line) for line in honest.splitlines()]
            shown = next(line["shown"] for line in lines if line["shown"]["flagged"])
            before, shown[part] = shown[part], change(shown[part])
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            assert bool(whats(tmp_path / "0")) is (shown[part] != before), part


class Mine(View):
    """A defence of one's own."""

    name = "mine"

    async def show(self, observation: Observation) -> Observation:
        return {**observation, "messages": observation["messages"][-1:]}


def test_a_defence_of_ones_own_is_listed_as_unknown(tmp_path: Path) -> None:
    run = fate_gym.evaluate(defend(Chooser(), Mine()), TOY, out=tmp_path / "run")
    report = verify(run.path)
    assert report.differences == []
    assert any("unknown defence 'mine'" in line for line in report.unknown)


def test_a_hundred_defences_cost_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Chooser(), env=TOY)
    edit_json(run / "manifest.json", lambda manifest: manifest["config"].update(defences=["spotlighting"] * 100_000))
    edit_json(run / "manifest.json", redigest)
    assert any("more than anybody" in what for what in whats(run))


def test_a_defended_agent_and_its_defences_make_one_run(tmp_path: Path) -> None:
    first = fate_gym.evaluate(Chooser(), TOY, defences="spotlighting", out=tmp_path / "run")
    again = fate_gym.evaluate(defend(Chooser(), "spotlighting"), TOY, out=tmp_path / "run")
    assert RunFolder.read(first.path).manifest["config"] == again.manifest["config"]
