"""Runs of ours as AgentDojo's logs, read by AgentDojo's own reader."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from fate_gym.agents import load_agent
from fate_gym.errors import UsageError
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import export_run

BAD_CALL = {"id": "bad", "type": "function", "function": {"name": "get_balance", "arguments": "{"}}


def _run(out: Path, agent: object = "gullible", **settings: object) -> RunFolder:
    config = EvalConfig(str(agent), env_args={"suite": "banking"}, limit=2, out=out, **settings)  # type: ignore[arg-type]
    asyncio.run(run_evaluation(config, load_agent(agent) if isinstance(agent, str) else agent))  # type: ignore[arg-type]
    return RunFolder.read(out)


def test_agentdojo_reads_the_logs_and_finds_our_verdicts(tmp_path: Path) -> None:
    from agentdojo.benchmark import load_task_results

    run = _run(tmp_path / "run", attack=(None, "direct", "dos"))
    written = export_run(run.path, "agentdojo")
    assert written.path == tmp_path / "run.agentdojo"
    assert written.episodes == 6
    for episode in run.episodes():
        suite, user, goal = episode.task_id.split("/")
        goal = "injection_task_0" if goal == "dos" else goal
        log = load_task_results("gullible", suite, user, episode.attack or "none", goal, written.path)
        assert log.utility == bool(episode.verdict.utility.value)
        attacked = episode.mode == "attacked"
        assert log.security == (not episode.verdict.security.value if attacked else True)
        assert log.injections == episode.injections
        assert [m["role"] for m in log.messages] == [m["role"] for m in episode.messages]


def test_each_repeat_is_a_pipeline_of_its_own(tmp_path: Path) -> None:
    written = export_run(_run(tmp_path / "run", repeats=2).path, "agentdojo", tmp_path / "logs")
    assert sorted(folder.name for folder in (tmp_path / "logs").iterdir()) == ["gullible", "gullible-repeat-1"]
    assert written.episodes == 4


def test_what_could_not_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    async def careless(observation: dict[str, object]) -> dict[str, object]:
        said = [m for m in observation["messages"] if m["role"] == "assistant"]  # type: ignore[attr-defined, index]
        return {"role": "assistant", "content": "", "tool_calls": [] if said else [BAD_CALL]}

    written = export_run(_run(tmp_path / "run", careless).path, "agentdojo")
    assert written.left_out == {"calls that could not be read": 2}
    log = json.loads(next(written.path.rglob("*.json")).read_bytes())
    assert [m["role"] for m in log["messages"]] == ["system", "user", "assistant", "assistant"]
    assert log["messages"][-1]["content"] == [{"type": "text", "content": ""}]


def test_an_export_replaces_nothing_and_names_the_formats(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    with pytest.raises(UsageError, match="did you mean agentdojo"):
        export_run(run.path, "agentdoja")
    with pytest.raises(UsageError, match="already there"):
        export_run(run.path, "agentdojo", tmp_path)
