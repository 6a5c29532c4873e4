"""How agents are named, configured and paid for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentdojo.agent_pipeline.agent_pipeline import load_system_message

from fate_gym.agents import as_agent, load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.agents.defences import defend
from fate_gym.cli import main
from fate_gym.errors import UsageError
from fate_gym.evaluation import EvalConfig, RunFolder, run_evaluation
from fate_gym.rollout import Agent, Reply

TOY = "toy/Parcels-v0"


class Paid(Agent):
    """Costs a cent a reply, or nobody knows what."""

    name = "paid"

    def __init__(self, usage: dict[str, float]) -> None:
        self.usage = usage

    def start(self, task: Any, seed: int) -> Any:
        return self

    async def act(self, observation: dict[str, Any]) -> Reply:
        return Reply("Done.", usage=self.usage)


def run(agent: Agent, out: Path, **settings: Any) -> dict[str, Any]:
    return asyncio.run(run_evaluation(EvalConfig(agent="paid", env=TOY, out=out, **settings), agent)).summary


def test_a_run_stops_when_its_budget_is_spent_and_a_larger_one_completes_it(tmp_path: Path) -> None:
    agent = Paid({"cost_usd": 0.01})
    settings: dict[str, Any] = {"repeats": 10, "concurrency": 1}
    summary = run(agent, tmp_path / "run", max_cost=0.045, **settings)
    assert summary["episodes"]["scored"] == 5
    assert run(agent, tmp_path / "run", max_cost=0.045, **settings)["episodes"]["scored"] == 5
    assert run(agent, tmp_path / "run", max_cost=1.0, **settings)["episodes"]["missing"] == 0


def test_an_unknown_price_is_not_zero(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_cost needs costs, and paid reported none"):
        run(Paid({"prompt_tokens": 5}), tmp_path / "run", max_cost=1.0)
    asked = []

    async def function(observation: dict[str, Any]) -> str:
        asked.append(observation)
        return "Done."

    unknown = OpenAIAgent("somebody", base_url="http://127.0.0.1:9/v1")
    for agent in (as_agent(function), unknown, defend(unknown, "repeat_user_prompt")):
        with pytest.raises(UsageError, match=r"max_cost needs prices, .*prices={MODEL: {input: 1.0, output: 2.0}}"):
            run(agent, tmp_path / "unasked", max_cost=1.0)
    assert not asked
    assert not (tmp_path / "unasked").exists()
    prices = {"somebody": {"input": 1.0, "output": 2.0}}
    assert not OpenAIAgent("somebody", base_url="http://127.0.0.1:9/v1", prices=prices).unpriced
    with pytest.raises(ValueError, match="max_cost must be above 0"):
        EvalConfig(agent="x", max_cost=0)


def test_a_script_costs_nothing(tmp_path: Path) -> None:
    assert run(load_agent("noop"), tmp_path / "run", max_cost=0.01)["episodes"]["missing"] == 0


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://user:canary@host:8000/v1?key=canary#canary", "https://host:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("plain text", "plain text"),
        (0.5, 0.5),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_what_is_secret_in_a_url_is_left_out(given: Any, kept: Any) -> None:
    assert EvalConfig(agent="x", agent_args={"base_url": given}).to_json()["agent_args"]["base_url"] == kept


def test_an_agent_and_its_options_come_from_a_file_and_flags_override_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("agent: openai:m\nbase_url: http://127.0.0.1:1/v1\ntemperature: 0\ndefences: [spotlighting]\n")
    flags = ["--temperature", "1", "--agent-arg", "max_attempts=2", "--system-prompt", "Be brief."]
    assert main(["eval", "--agent", str(path), *flags, "--dry-run"]) == 0
    (config,) = yaml.safe_load(capsys.readouterr().out)
    assert config["agent"] == "openai:m"
    assert config["agent_args"] == {"base_url": "http://127.0.0.1:1/v1", "temperature": 1.0, "max_attempts": 2}
    assert config["defences"] == ["spotlighting"]
    assert config["env_args"] == {"system_prompt": "Be brief."}
    for text, message in (("temperature: 0\n", "must name its `agent`"), ("agent: noop\nseed: 1\n", "nothing else")):
        path.write_text(text)
        assert main(["eval", "--agent", str(path), "--dry-run"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "noop", "--temperature", "1"], "the agent noop has no argument 'temperature'; it takes none"),
        (["--agent", "noop", "--defence", "wall"], "wall"),
        (["--agent", "openai:gpt-4o"], "OPENAI_API_KEY"),
        (["--agent", "openai:m", "--agent-arg", "colour=red"], "colour"),
        (["--agent", "openai:m", "--base-url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
        (["--agent", "hf:/nowhere/model"], "/nowhere/model"),
        (["--agent", "missing.yaml"], "missing.yaml"),
    ],
)
def test_an_agent_that_cannot_work_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["eval", "--suite", "banking", *arguments, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob("*"))


def test_a_system_prompt_replaces_the_benchmarks_and_stands_in_the_run(tmp_path: Path) -> None:
    seen: list[str] = []

    async def agent(observation: dict[str, Any]) -> dict[str, Any]:
        seen.append(json.dumps([m["content"] for m in observation["messages"] if m["role"] == "system"]))
        return {"content": "Done."}

    for prompt in ("Be brief.", "", None):
        args = {"suite": "banking", **({} if prompt is None else {"system_prompt": prompt})}
        out = tmp_path / f"run {prompt}"
        asyncio.run(run_evaluation(EvalConfig(agent="agent", env_args=args, limit=1, out=out), agent))
        assert RunFolder.read(out).manifest["config"]["env_args"].get("system_prompt") == prompt
    assert seen[:2] == ['["Be brief."]', "[]"]
    assert json.loads(seen[2]) == [load_system_message(None)]


def test_the_shortest_texts_still_name_agents() -> None:
    assert load_agent("oracle").name == "oracle"
    with pytest.raises(ValueError, match="unknown agent 'hf:'"):
        load_agent("hf:")
