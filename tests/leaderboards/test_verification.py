"""`verify`: honest runs pass, whatever was changed is named, and nothing in a folder makes it run code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import MakeRun, edit_json, edit_line, redigest

from fate_gym.agents import is_privileged
from fate_gym.errors import ContextOverflowError, RunError, UsageError
from fate_gym.evaluation.keys import KeyList
from fate_gym.leaderboards import scanning
from fate_gym.leaderboards.findings import Verification
from fate_gym.leaderboards.replay import leaves
from fate_gym.leaderboards.verification import verify
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

TOY = "toy/Parcels-v0"


def found(run: Path) -> list[tuple[str, str]]:
    return [(entry.where, entry.what) for entry in verify(run).differences]


def attacked(record: dict[str, Any]) -> bool:
    return record["mode"] == "attacked"


def test_an_honest_run_agrees(dojo_run: Path) -> None:
    report = verify(dojo_run)
    assert report.differences == []
    assert report.replayed == len((dojo_run / "episodes.jsonl").read_text().splitlines()) > 10
    assert 'split: "dev"' in report.notes
    assert report.to_json()["ok"] is True


class Odd(Agent):
    """Sends whatever a model or its server might."""

    name = "odd"

    def start(self, task: Task, seed: int) -> Session:
        return _Odd(iter(_ODDITIES))


_ODDITIES: list[Any] = [
    {"role": "assistant", "content": "\ud800 \u202e \x1b[31m", "tool_calls": [{"function": {"name": 5}}]},
    {"tool_calls": [{"id": "a", "function": {"name": "look", "arguments": "{not json"}}]},
    {"tool_calls": [{"id": "a", "function": {"name": "ship", "arguments": '{"parcel": NaN}'}}]},
    {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}], "extra": {1: b"bytes"}},
    {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 10**301, "weight": float("nan")}}}]},
    [1, 2],
    "done",
]


def _nested(levels: int) -> Any:
    return {"parcel": _nested(levels - 1)} if levels else 1


class Extreme(Agent):
    """Sends arguments at the bounds of what is read: as an object and as text."""

    name = "extreme"

    def start(self, task: Task, seed: int) -> Session:
        arguments = [
            {"parcel": 10**299},
            {"parcel": 10**301},
            {"parcel": -1e308},
            _nested(60),
            _nested(70),
            _nested(300),
        ]
        calls = [{"function": {"name": "ship", "arguments": given}} for given in arguments]
        texts = [
            {"function": {"name": "ship", "arguments": f'{{"parcel": {number}}}'}} for number in ("1e400", "9" * 400)
        ]
        return _Odd(iter([{"tool_calls": calls}, {"tool_calls": texts}, {"content": "Done.", "x": _nested(150)}]))


class Failing(Agent):
    """Sends one call, and then gives no answer."""

    name = "failing"

    def start(self, task: Task, seed: int) -> Session:
        return _Odd(iter([{"tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}]))


class _Odd:
    def __init__(self, actions: Iterator[Any]) -> None:
        self._actions = actions

    async def act(self, observation: Any) -> Reply:
        return Reply(next(self._actions))


class Overflowing(Agent):
    """Its conversation no longer fits after one turn."""

    name = "overflowing"

    def start(self, task: Task, seed: int) -> Session:
        return _Overflowing()


class _Overflowing:
    asked = False

    async def act(self, observation: Any) -> Reply:
        if self.asked:
            raise ContextOverflowError("too long")
        self.asked = True
        return Reply({"tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]})


@pytest.mark.parametrize("agent", [Odd(), Extreme(), Overflowing(), "random", "refuser"])
def test_honest_runs_of_odd_agents_agree_as_well(agent: str | Agent, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", agent, env=TOY, repeats=2)
    assert verify(run).differences == []


def test_failures_of_an_agent_are_played_up_to_where_it_failed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Failing(), env=TOY)
    report = verify(run)
    assert {what for _, what in ((entry.where, entry.what) for entry in report.differences)} == {
        "is missing: the task list has it, and no episode does (it errored: provider_error; the same command tries it "
        "again)"
    }
    assert report.replayed == len(report.differences) == 3
    edit_line(run / "failures.jsonl", lambda record: True, lambda record: record["messages"].pop())
    assert any("messages" in what for _, what in found(run))


def test_changed_score(copied: Path) -> None:
    def forge(record: dict[str, Any]) -> None:
        record["verdict"]["security"]["value"] = 1.0

    key = edit_line(copied / "episodes.jsonl", lambda r: attacked(r) and r["verdict"]["security"]["value"] == 0, forge)
    lines = found(copied)
    assert (key, "verdict.security.value: stored 1.0, recomputed 0.0") in lines
    assert any(where == "summary.json" and "ASR.value" in what for where, what in lines)
    assert {where for where, _ in lines} == {key, "summary.json"}


def test_dropped_episode(copied: Path) -> None:
    path = copied / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    key = json.loads(lines[0])["key"]
    assert (key, "is missing: the task list has it, and no episode does") in found(copied)


def test_dropped_episode_that_claims_an_error(copied: Path) -> None:
    path = copied / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    record = {**json.loads(lines[0]), "status": "provider_error", "error": "the network, sorry"}
    (copied / "failures.jsonl").write_text(json.dumps(record) + "\n")
    assert any(
        where == record["key"] and "is missing" in what and "provider_error" in what for where, what in found(copied)
    )


@pytest.mark.parametrize(
    ("part", "edit"),
    [
        ("messages", lambda record: record["messages"][-1].update(content="I did nothing of the kind.")),
        ("messages", lambda record: record["messages"].pop(2)),
        ("actions", lambda record: record["actions"].pop()),
        ("calls", lambda record: record["calls"][0].update(name="other_tool")),
        ("injections", lambda record: record["injections"].update(new="text")),
        ("injection_reached", lambda record: record.update(injection_reached=False)),
        ("metadata", lambda record: record["metadata"].update(split="unseen")),
    ],
)
def test_edited_trace(part: str, edit: Any, copied: Path) -> None:
    key = edit_line(copied / "episodes.jsonl", attacked, edit)
    lines = [what for where, what in found(copied) if where == key]
    assert any(what.startswith((part, "replay")) for what in lines), lines


def test_a_forged_action_is_played_and_found_out(copied: Path) -> None:
    def behave(record: dict[str, Any]) -> None:
        record["actions"] = [{"role": "assistant", "content": "Nothing to do."}]

    key = edit_line(copied / "episodes.jsonl", attacked, behave)
    lines = [what for where, what in found(copied) if where == key]
    assert "verdict.security.value: stored 0.0, recomputed 1.0" in lines
    assert lines[-1].endswith("more values")
    assert len(lines) == 6


def test_duplicate_episode(copied: Path) -> None:
    path = copied / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    key = json.loads(lines[0])["key"]
    assert found(copied) == [(f"episodes.jsonl, line {len(lines) + 1}", f"repeats {key}, which is on line 1")]


def test_however_many_repeat_a_key_all_keys_are_looked_through_once(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, *(lines[:2] * 20)]))
    looks: list[int] = []
    indices = KeyList.indices

    def counted(self: KeyList, keys: Iterable[str]) -> list[int]:
        looks.append(1)
        return indices(self, keys)

    monkeypatch.setattr(KeyList, "indices", counted)
    reported: list[tuple[str, str]] = []
    assert len(list(scanning.episodes(copied, lambda *what: reported.append(what)))) == len(lines)
    assert [what.rpartition(" ")[2] for _, what in reported] == ["1", "2"] * 20
    assert reported[-1][0] == f"episodes.jsonl, line {len(lines) + 40}"
    assert len(looks) == 1


@pytest.mark.parametrize("careful", [False, True])
def test_wrong_split(careful: bool, copied: Path) -> None:
    def claim(manifest: dict[str, Any]) -> None:
        manifest["config"]["env_args"]["split"] = "test"
        if careful:
            redigest(manifest)

    edit_json(copied / "manifest.json", claim)
    lines = found(copied)
    assert any(where == "manifest.json" and "digest" in what for where, what in lines) is not careful
    assert any("is not in the task list of these settings" in what for _, what in lines)
    assert any("is missing" in what for _, what in lines)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["versions"].update({"fate-gym": "0.0.1"}), "versions.fate-gym"),
        (lambda m: m.pop("versions"), "versions."),
        (lambda m: m["provenance"][0].update(agentdojo="0.1.30"), "provenance[0].agentdojo"),
        (lambda m: m["provenance"][1]["data_sha256"].update(banking="0"), "provenance[1].data_sha256.banking"),
        (lambda m: m["config"]["env_args"].update(version="v1.1"), "provenance[0].version"),
        (lambda m: m["config"]["env_args"].update(version="v9"), "no environment can be made"),
        (lambda m: m.update(schema="fate-gym/run/9"), "written by a newer fate-gym"),
        (lambda m: m.update(data_policy="do as you like"), "data_policy"),
        (lambda m: m.pop("digest"), "digest"),
    ],
)
def test_wrong_version(change: Any, expected: str, copied: Path) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        change(manifest)
        if "digest" in manifest:
            redigest(manifest)

    edit_json(copied / "manifest.json", forge)
    assert any(where == "manifest.json" and expected in what for where, what in found(copied))


def test_another_version_of_a_library_is_no_fault_but_is_said(copied: Path) -> None:
    edit_json(copied / "manifest.json", lambda manifest: manifest["versions"].update(numpy="1.0"))
    report = verify(copied)
    assert report.ok
    assert any("numpy" in note for note in report.notes)


@pytest.mark.parametrize("name", ["episodes.jsonl", "summary.json", "manifest.json"])
def test_truncated_file(name: str, copied: Path) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[:-40])
    assert any(where.startswith(name) and "not a JSON object" in what for where, what in found(copied))


@pytest.mark.parametrize("name", ["episodes.jsonl", "failures.jsonl", "summary.json"])
def test_missing_file(name: str, copied: Path) -> None:
    (copied / name).unlink()
    assert any(where == name and f"has no {name}" in what for where, what in found(copied))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["groups"][0]["metrics"]["ASR"].update(value=0.0), "groups.attacked/important_instructions/all"),
        (lambda s: s["groups"][0]["metrics"]["ASR"].update(high=0.5), ".metrics.ASR.high: stored 0.5"),
        (lambda s: s["episodes"].update(scored=3), "episodes.scored: stored 3"),
        (lambda s: s["groups"].pop(0), "stored nothing"),
        (lambda s: s.update(groups=["x"]), "groups.0"),
        (lambda s: s.update(agent="gpt-9"), "agent: stored"),
        (lambda s: s.update(schema="other/1"), "does not name its schema"),
    ],
)
def test_summary_that_disagrees(change: Any, expected: str, copied: Path) -> None:
    edit_json(copied / "summary.json", change)
    lines = found(copied)
    assert {where for where, _ in lines} == {"summary.json"}
    assert any(expected in what for _, what in lines), lines


def test_records_of_another_shape_are_named_and_passed_over(copied: Path) -> None:
    path = copied / "episodes.jsonl"
    first, second, third, fourth, *rest = (json.loads(line) for line in path.read_text().splitlines())
    first["verdict"]["security"]["value"] = 1.5
    second["schema"] = "fate-gym/episode/9"
    third["status"] = "env_error"
    fourth["seed"] += 1
    path.write_text("".join(json.dumps(record) + "\n" for record in (first, second, third, fourth, *rest)) + "[]\n")
    (copied / "failures.jsonl").write_text(json.dumps({**rest[0], "key": "x/y#0"}) + "\n")
    lines = dict(found(copied))
    assert "must lie in [0, 1]" in lines["episodes.jsonl, line 1"]
    assert "newer fate-gym" in lines["episodes.jsonl, line 2"]
    assert "belongs in failures.jsonl" in lines["episodes.jsonl, line 3"]
    assert "not a JSON object" in lines[f"episodes.jsonl, line {len(rest) + 5}"]
    assert lines[fourth["key"]].startswith("seed: stored")
    assert "status 'ok'" in lines["failures.jsonl, line 1"]


def test_a_failure_outside_of_the_task_list(copied: Path) -> None:
    record = json.loads((copied / "episodes.jsonl").read_text().splitlines()[0])
    record.update(key="x/y#0", status="env_error", error="boom")
    (copied / "failures.jsonl").write_text(json.dumps(record) + "\n")
    assert ("x/y#0", "is in failures.jsonl and not in the task list of these settings") in found(copied)


# What a folder says must never become code, a request or a path.


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a mark when it is imported."""
    mark = tmp_path / "imported"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "trap.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n\ndef judge(*a, **k):\n    raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield mark
    sys.modules.pop("trap", None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["env_args"].update(benchmark="trap:judge"), "takes no argument benchmark"),
        (lambda c: c["env_args"].update(purpose="training"), "takes no argument purpose"),
        (lambda c: c["env_args"].update(refusal_judge="trap:judge"), "digest"),
        (lambda c: c["env_args"].update(split=["x"]), "no environment can be made"),
        (lambda c: c.update(agent="import:trap:judge"), "digest"),
        (lambda c: c.update(repeats=10**9), "config.repeats"),
        (lambda c: (c.update(repeats=1000), c["env_args"].update(suite="all", split=None)), "more than"),
        (lambda c: c.update(limit="all"), "config.limit"),
        (lambda c: c.update(attack=[5]), "config.attack"),
        (lambda c: c.update(attack=[{"vector": 5}]), "config.attack"),
        (lambda c: c.update(tasks=[5]), "config.tasks"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.pop("seed"), "seed"),
    ],
)
def test_settings_cannot_run_anything(change: Any, expected: str, copied: Path, trap: Path) -> None:
    edit_json(copied / "manifest.json", lambda manifest: change(manifest["config"]))
    assert any(where == "manifest.json" and expected in what for where, what in found(copied))
    assert not trap.exists()


def test_a_manifest_without_settings(copied: Path) -> None:
    edit_json(copied / "manifest.json", lambda manifest: manifest.update(config=[]))
    assert any("config must be an object" in what for _, what in found(copied))


def test_an_unknown_environment_is_imported_on_the_users_word_alone(copied: Path, trap: Path) -> None:
    edit_json(copied / "manifest.json", lambda manifest: manifest["config"].update(env="trap:other/Env-v0"))
    with pytest.raises(UsageError, match="--trust MODULE"):
        verify(copied)
    assert not trap.exists()
    with pytest.raises(UsageError, match="not registered"):
        verify(copied, trusted="trap")
    assert trap.exists()


def test_the_environment_of_a_third_party(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", env=f"shop_plugin:{TOY}")
    assert verify(run, trusted="shop_plugin").ok


JUDGE = """
from fate_gym.verifiers.refusal import Judgement

def strict(transcript):
    return Judgement(True, "strict", "always")
"""


def test_what_a_judge_scored_is_counted_and_not_scored_again(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    env_args = {"suite": ["banking"], "split": "dev", "refusal_judge": "some_judge:strict"}
    run = make_run(tmp_path / "run", env_args=env_args)
    sys.modules.pop("some_judge")
    report = verify(run)
    assert report.differences == []
    assert report.not_rescored == {"over_refusal_control": report.replayed}
    assert any("refusal_judge" in note for note in report.notes)
    assert "some_judge" not in sys.modules

    def forge(record: dict[str, Any]) -> None:
        record["verdict"]["utility"]["value"] = 1.0 - record["verdict"]["utility"]["value"]

    key = edit_line(run / "episodes.jsonl", lambda record: True, forge)
    assert any(entry.where == key for entry in verify(run).differences)


def test_marks_of_contamination_must_be_declared(copied: Path) -> None:
    edit_json(copied / "manifest.json", lambda manifest: manifest.update(contaminated_by=["AgentHarm/validation"]))
    submission = 'schema: fate-gym/submission/1\nwho: a\nmodel: b\ndate: "2026-01-01"\n'
    (copied / "submission.yaml").write_text(submission)
    assert any(where == "submission.yaml" and "AgentHarm" in what for where, what in found(copied))
    (copied / "submission.yaml").write_text(submission + "contaminated_by: [AgentHarm/validation]\n")
    report = verify(copied)
    assert report.ok
    assert any("trained on AgentHarm/validation" in note for note in report.notes)


def test_a_bad_submission_file_is_a_difference(copied: Path) -> None:
    (copied / "submission.yaml").write_text("who: me\n")
    assert any(where == "submission.yaml" and "missing" in what for where, what in found(copied))


def test_a_part_of_the_benchmark_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    report = verify(make_run(tmp_path / "run", env=TOY, limit=1, tasks=("shop/*",)))
    assert report.ok
    assert any("a part of the benchmark" in note for note in report.notes)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, None),
        ({"model_name": "Noop"}, None),
        ({"model_name": "nobody"}, "nobody"),
        ({"model_name": "GPT-4"}, "GPT-4"),
    ],
)
def test_a_name_that_is_not_the_models_own_is_said(
    named: dict[str, str], said: str | None, make_run: MakeRun, tmp_path: Path
) -> None:
    env_args = {"suite": ["banking"], "split": "dev", **named}
    make_run(tmp_path, "noop", env="fate/AgentDojo-v0", attack=("important_instructions",), env_args=env_args, limit=1)
    report = verify(tmp_path)
    assert report.ok
    assert [note for note in report.notes if "address the model" in note] == (
        [] if said is None else [note for note in report.notes if f'address the model as "{said}", which is no' in note]
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model_name"] == named.get("model_name", "Local model")
    manifest["model_name"] = "Claude"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest) + "\n")
    assert [what.partition(":")[0] for _, what in found(tmp_path)] == ["model_name"]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no manifest\.json"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("stored", "fresh", "same"),
    [
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, True),
        (1648834577, 1648834578, False),
        (1, True, False),
        ("1", 1.0, False),
        (10**400, 1.0, False),
        (None, 0.0, False),
        ([1, 2], [1], False),
        ({"a": 1}, {"a": 1, "b": None}, False),
    ],
)
def test_what_counts_as_equal(stored: Any, fresh: Any, same: bool) -> None:
    assert (not list(leaves(stored, fresh, "x"))) is same


def test_many_values_of_one_place_are_counted() -> None:
    report = Verification(Path("run"))
    report.add_changes("key", iter([(f"x{i}", i, "long" * 50) for i in range(7)]), 5)
    assert len(report.differences) == 6
    assert report.differences[-1].what == "and 2 more values"
    assert "characters)" in report.differences[0].what


@pytest.mark.parametrize(("agent", "privileged"), [("gullible", False), ("noop", True), ("gullible", None)])
def test_the_privilege_of_agents_that_ship_is_known(
    agent: str, privileged: bool | None, make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path, agent, env=TOY)
    assert found(tmp_path) == []
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["privileged"] = privileged
    (tmp_path / "manifest.json").write_text(json.dumps(manifest) + "\n")
    assert [what.partition(":")[0] for _, what in found(tmp_path)] == ["privileged"]


def test_only_an_agents_own_code_knows_the_privilege_of_others() -> None:
    agents = ("oracle", "gullible", "random", "openai:x", "hf:oracle", "import:m:f", "replay:runs/x", "oracle2")
    assert [is_privileged(agent) for agent in agents] == [True, True, False, False, False, None, None, None]
