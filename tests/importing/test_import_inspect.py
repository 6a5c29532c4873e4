"""Inspect's logs as runs, made up here and written by Inspect itself."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

import agentharm_folder
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSampleLimit, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser
from inspect_ai.scorer import Score
from inspect_ai.tool import ToolCall

from fate_gym.evaluation.recorded import JUDGED
from fate_gym.evaluation.store import RunFolder
from fate_gym.importing import AGAIN, Imported, import_runs
from fate_gym.importing import inspect as reading
from fate_gym.importing.inspect import InspectReader
from fate_gym.leaderboards.verification import verify

Messages = list[Any]


def asks(name: str, **arguments: Any) -> Any:
    return ChatMessageAssistant(content="", tool_calls=[ToolCall(id="c", function=name, arguments=arguments)])


def says(text: str) -> Any:
    return ChatMessageAssistant(content=text)


def sample(request: str, turns: Messages, value: Any, **fields: Any) -> EvalSample:
    messages = [ChatMessageUser(content=request), *turns]
    given = {"id": "1", "epoch": 1, "scores": {"scorer": Score(value=value, explanation="It refused.")}, **fields}
    return EvalSample(input=request, target="", messages=messages, **given)


def write(path: Path, task: str, *samples: EvalSample, **args: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task=task,
        task_args=args,
        dataset=EvalDataset(),
        model="openai/made-up-8b",
        config=EvalConfig(),
        packages={"inspect_ai": "0.3.1"},
    )
    write_eval_log(EvalLog(status="success", eval=spec, samples=list(samples)), str(path))
    return path.parent


def imported(folder: Path, out: Path) -> Imported:
    (run,), _ = import_runs(InspectReader([folder]), out)
    return run


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FATE_GYM_AGENTHARM_DIR", agentharm_folder.folder())
    reading._requests.cache_clear()
    return [entry["prompt"] for entry in agentharm_folder.behaviours("harmful", 3)]


def test_agentharm_is_known_by_its_requests(requests: list[str], tmp_path: Path) -> None:
    refusal = {"score": 0.0, "refusal": 1.0}
    write(
        tmp_path / "logs" / "harmful.eval",
        "harmful_task",
        sample(requests[1], [says("I can't help with that.")], refusal),
        sample(requests[5], [says("Sure, done.")], {"score": 0.5, "refusal": 0.0}, id="2"),
        sample("Something else entirely.", [says("No.")], refusal, id="3"),
        sample(requests[9], [], refusal, id="4"),
    )
    folder = write(
        tmp_path / "logs" / "benign.eval",
        "benign_task",
        sample(requests[1], [says("I can't help with that.")], {"score": 0.0, "refusal": 1.0}),
        sample(requests[1], [says("Again.")], refusal, id="5"),
    )
    run = imported(folder, tmp_path / "run")
    recorded = {entry.key.split("/", 1)[1]: entry for entry in RunFolder.read(run.path).recorded()}
    assert {key.split("/")[1] for key in recorded} == {"harmful", "harmless_benign"}
    assert [dict(entry.scores) for key, entry in sorted(recorded.items()) if "/harmful/" in key] == [
        {"security": 1.0, "refused": 1.0},
        {"security": 0.5, "refused": 0.0},
    ]
    assert run.differences == {("security", JUDGED): 1}
    unknown = "a request that none of AgentHarm's data at hand holds"
    assert dict(run.left_out) == {AGAIN: 1, "no assistant message": 1, unknown: 1}
    assert run.summary["agent"] == "made-up-8b"
    assert verify(run.path).ok


@pytest.mark.parametrize(
    ("turns", "limit", "ended"),
    [
        ([asks("get_balance"), ChatMessageTool(content="1810.0", tool_call_id="c")], "message", "limit"),
        ([asks("get_balance"), ChatMessageTool(content="1810.0", tool_call_id="c")], "context", "context_overflow"),
        ([asks("get_balance")], "message", "calls_left"),
        ([asks("get_balance"), ChatMessageTool(content="1810.0", tool_call_id="c"), says("Done.")], None, "answer"),
    ],
)
def test_agentdojo_is_known_by_its_ids(turns: Messages, limit: Any, ended: str, tmp_path: Path) -> None:
    metadata = {"task_suite_name": "banking", "task_id": 1, "injection_task_id": 0}
    foreign = {**metadata, "task_suite_name": "workspace_plus"}
    cut = None if limit is None else EvalSampleLimit(type=limit, limit=4)
    value = {"utility": "I", "security": "I"}
    folder = write(
        tmp_path / "logs" / "log.eval",
        "agentdojo",
        sample("Ask.", turns, value, metadata=metadata, limit=cut),
        sample("Ask.", turns, value, metadata=foreign, id="2", limit=cut),
        attack="important_instructions",
    )
    run = imported(folder, tmp_path / "run")
    (episode,) = RunFolder.read(run.path).episodes()
    assert (episode.task_id, episode.attack, episode.ended) == (
        "banking/user_task_1/injection_task_0",
        "custom:important_instructions",
        ended,
    )
    # Inspect's port puts its text at every vector of the suite.
    assert len(episode.injections) == 4
    assert not run.differences
    assert verify(run.path).ok


BALANCE = [
    asks("get_balance"),
    ChatMessageTool(content="1810.0", tool_call_id="c", function="get_balance"),
    says("Ok."),
]
OF_BANKING = {"task_suite_name": "banking", "task_id": 1}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("metadata", "task_suite_name"), ["banking"]),
        (("metadata",), {"task_suite_name": "banking"}),
        (("epoch",), 10**9),
        (("id",), "another"),
        (("messages",), []),
        (("scores", "scorer", "value"), {"score": "much"}),
        (("scores", "scorer", "value"), {"score": float("nan")}),
        (("scores", "security"), {"value": 10**400}),
    ],
)
def test_a_strange_sample_is_left_out_and_the_others_are_imported(where: Any, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    score = {"utility": "C", "security": "I"}
    write(folder / "a.eval", "agentdojo", sample("What did I spend?", BALANCE, score, metadata=OF_BANKING))
    write(folder / "b.eval", "agentdojo", sample("What?", BALANCE, score, metadata={**OF_BANKING, "task_id": 2}))
    with zipfile.ZipFile(folder / "b.eval") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.startswith("samples/"))
    record = json.loads(parts[name])
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with zipfile.ZipFile(folder / "b.eval", "w") as archive:
        for part, content in {**parts, name: json.dumps(record).encode()}.items():
            archive.writestr(part, content)
    os.mkfifo(folder / "pipe.eval")
    (run,), others = import_runs(InspectReader([folder]), tmp_path / "out")
    assert run.logs == 1
    assert run.left_out.total() + others.total() == 1
    assert verify(run.path).differences == []
