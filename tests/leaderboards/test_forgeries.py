"""Forgeries that take thought: bounds, names, judges. Each single field is tried in `tests/security`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agentharm_folder
import pytest
from small_runs import MakeRun, edit_json, edit_line, redigest, resummarise

from fate_gym.leaderboards.verification import verify
from fate_gym.rewards import Verdict

TOY = "toy/Parcels-v0"


@pytest.fixture(scope="module")
def toy(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a failure that was tried again, and with everything that a record may hold."""
    run = make_run(tmp_path_factory.mktemp("runs") / "toy", "gullible", env=TOY, repeats=2)

    def spend(record: dict[str, Any]) -> None:
        record["usage"] = {"prompt_tokens": 10, "completion_tokens": 2, "cost_usd": 0.01}

    edit_line(run / "episodes.jsonl", lambda record: record["mode"] == "attacked", spend)
    record = json.loads((run / "episodes.jsonl").read_text().splitlines()[0])
    record |= {"status": "provider_error", "error": "out of quota", "ended": None, "actions": [], "calls": []}
    record |= {"messages": record["messages"][:1], "injection_reached": False}
    record["verdict"] = Verdict.unscored("out of quota").to_json()
    (run / "failures.jsonl").write_text(json.dumps(record) + "\n")
    resummarise(run)
    assert verify(run).differences == []
    return run


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "copy"))


def whats(run: Path) -> list[str]:
    return [entry.what for entry in verify(run).differences]


@pytest.mark.parametrize(
    ("forge", "field"),
    [
        (lambda r: r["usage"].update(cost_usd=-1.0), "usage.cost_usd"),
        (lambda r: r["usage"].update(prompt_tokens=10**400), "usage.prompt_tokens"),
        (lambda r: r["usage"].update(completion_tokens=1e308), "usage.completion_tokens"),
        (lambda r: r["seconds"].update(total=-0.1), "seconds.total"),
        (lambda r: r["seconds"].update(idle=1.0), "seconds"),
        (lambda r: r.update(attempts=-1), "attempts"),
        (lambda r: r.update(attempts=10**400), "attempts"),
        (lambda r: r.update(seed=10**400), "seed"),
        (lambda r: r["verdict"]["security"].update(measures={"x": 10**400}), "measures.x"),
    ],
)
def test_values_that_only_have_bounds(forge: Any, field: str, copy: Path) -> None:
    edit_line(copy / "episodes.jsonl", lambda record: True, forge)
    assert any("is not an episode's record" in what and field in what for what in whats(copy))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("manifest.json", lambda m: m.update(blessed_by="nobody")),
        ("manifest.json", lambda m: m["config"].update(blessed=None)),
        ("summary.json", lambda s: s.update(score=1.0)),
        ("summary.json", lambda s: s["groups"][0].update(score=None)),
        ("summary.json", lambda s: s["groups"].insert(0, {**s["groups"][0], "n": 99})),
        ("episodes.jsonl", lambda r: r.update(certified=None)),
        ("episodes.jsonl", lambda r: r["verdict"].update(charm={"value": 1.0})),
        ("episodes.jsonl", lambda r: r["calls"][0].update(content="...")),
    ],
)
def test_fields_and_groups_that_nobody_wrote(name: str, change: Any, copy: Path) -> None:
    if name == "episodes.jsonl":
        edit_line(copy / name, lambda record: bool(record["calls"]), change)
    else:
        edit_json(copy / name, change)
    assert whats(copy)


JUDGES = """
from fate_gym.errors import JudgeError
from fate_gym.verifiers.refusal import Judgement

def half(question, asked=[]):
    asked.append(question)
    return ("pass", "fail", "maybe")[len(asked) % 3]

def never(transcript, asked=[]):
    asked.append(transcript)
    if len(asked) % 5 == 0:
        raise JudgeError("two judgements", answered=True)
    return Judgement(False, "never", "it went to work")
"""


@pytest.fixture(scope="module")
def judged(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of harmful and harmless requests that two judges scored, over data in a folder of its own."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "judges_for_boards.py").write_text(JUDGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(modules)
        patch.setenv("FATE_GYM_AGENTHARM_DIR", agentharm_folder.folder())
        env_args = {
            "config": ["harmful", "harmless_benign"],
            "data_dir": agentharm_folder.folder(),
            "semantic_judge": "judges_for_boards:half",
            "refusal_judge": "judges_for_boards:never",
        }
        yield make_run(tmp_path_factory.mktemp("runs") / "judged", "oracle", env="fate/AgentHarm-v0", env_args=env_args)


def is_judged(record: dict[str, Any], axis: str) -> bool:
    return "judge:" in record["verdict"][axis]["rule"]


def test_an_honest_run_with_judges_agrees_and_says_what_they_scored(judged: Path) -> None:
    report = verify(judged)
    assert report.differences == []
    assert set(report.not_rescored) == {"security", "utility", "over_refusal_control"}
    assert sum("a judge scored it" in line for line in report.unknown) == 3


@pytest.mark.parametrize(
    ("axis", "forge"),
    [
        ("security", lambda axis: axis.update(value=1.0, measures={**axis["measures"], "harm_low": 0, "harm_high": 0})),
        ("security", lambda axis: axis["measures"].update(harmful_calls=0.0)),
        ("security", lambda axis: axis["measures"].pop("harm_low")),
        ("security", lambda axis: axis.update(active=False)),
        ("security", lambda axis: axis.update(rule="agentharm:no-executed-call", value=1.0)),
        ("utility", lambda axis: axis.update(value=0.123)),
        ("utility", lambda axis: axis.update(rule="judge:never", value=1.0)),
        ("over_refusal_control", lambda axis: axis.update(value=0.5)),
        ("over_refusal_control", lambda axis: axis.update(rule="agentharm-graders/judge:half")),
        ("validity", lambda axis: axis.update(rule="judge:never", value=0.5)),
    ],
)
def test_what_no_judge_could_have_said(axis: str, forge: Any, judged: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(judged, tmp_path / "copy"))
    chosen = edit_line(
        run / "episodes.jsonl",
        lambda r: r["verdict"][axis]["active"] and (axis == "validity" or is_judged(r, axis)),
        lambda r: forge(r["verdict"][axis]),
    )
    resummarise(run)
    assert any(entry.where == chosen for entry in verify(run).differences)


@pytest.mark.parametrize("axis", ["security", "utility", "validity"])
def test_a_refusal_judge_scores_refusal_alone(axis: str, copied: Path) -> None:
    def forge(record: dict[str, Any]) -> None:
        record["verdict"][axis].update(value=1.0 - record["verdict"][axis]["value"], rule="judge:openai:any")

    edit_json(copied / "manifest.json", lambda m: m["config"]["env_args"].update(refusal_judge="openai:any"))
    edit_json(copied / "manifest.json", redigest)
    chosen = edit_line(copied / "episodes.jsonl", lambda r: r["mode"] == "attacked", forge)
    resummarise(copied)
    assert any(entry.where == chosen for entry in verify(copied).differences)


def test_the_name_of_a_judge_that_is_a_model_must_be_the_one_of_the_settings(copied: Path) -> None:
    edit_json(copied / "manifest.json", lambda m: m["config"]["env_args"].update(refusal_judge="openai:any"))
    edit_json(copied / "manifest.json", redigest)
    for name, agrees in (("judge:openai:any", True), ("judge:openai:other", False)):
        path = copied / "episodes.jsonl"
        edit_line(path, lambda r: True, lambda r, n=name: r["verdict"]["over_refusal_control"].update(rule=n))
        resummarise(copied)
        assert verify(copied).ok is agrees
