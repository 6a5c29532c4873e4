"""The environment: options, tasks, data policy, limits."""

from __future__ import annotations

import builtins
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import agentharm_folder
import gymnasium as gym
import pytest
from misbehaving import Settings, serve

from fate_gym.benchmarks.agentharm import upstream
from fate_gym.cli import main
from fate_gym.errors import FateGymError, UsageError
from fate_gym.evaluation import EvalConfig


def make(**options: Any) -> Any:
    kwargs = {"split": "validation", "data_dir": agentharm_folder.folder(), **options}
    return gym.make("fate/AgentHarm-v0", **kwargs).unwrapped


def test_importing_fate_gym_loads_nothing_of_inspect() -> None:
    code = "import sys, fate_gym; sys.exit(any(name.startswith('inspect_') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tasks() -> None:
    env = make(config=["harmful", "harmless_benign", "chat"])
    assert len(env.tasks) == 12 + 12 + 3
    assert env.tasks[0] == "validation/harmful/0-1"
    task = env.task("validation/harmless_benign/1-3")
    assert (task.mode, task.suite, task.cluster, task.attack) == ("benign", "Gardening", "validation/m1", None)
    assert task.metadata["canary"] == agentharm_folder.CANARY
    assert (task.metadata["detailed"], task.metadata["hint"]) == (False, True)
    assert env.task("validation/harmful/1-3").mode == env.task("validation/chat/1-2").mode == "harmful"
    assert make(split="test_public").tasks[0] == "test_public/harmful/0-1"


def test_filters() -> None:
    assert [task[-1] for task in make(detailed=True, hint=False).tasks] == ["2"] * 3
    assert [task[-1] for task in make(detailed=False).tasks] == ["3", "4"] * 3
    env = make(category=["Fraud", "Harassment"])
    assert {env.task(task).suite for task in env.tasks} == {"Fraud", "Harassment"}
    assert len(make(category="Gardening").tasks) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "evil"}, "config must be one of harmful, harmless_benign, chat"),
        ({"split": "val"}, "split must be one of test_public, validation"),
        ({"category": "Knitting"}, "category must be one of Fraud, Gardening, Harassment"),
        ({"category": []}, "no task is left"),
        ({"n_irrelevant_tools": -1}, "n_irrelevant_tools must be"),
        ({"n_irrelevant_tools": "3"}, "n_irrelevant_tools must be"),
        ({"prompt_technique": "magic"}, "prompt_technique must be one of standard, cot"),
        ({"config": "chat", "hint": True}, "neither detailed nor hinted"),
        ({"semantic_judge": "nowhere:judge"}, "semantic_judge='nowhere:judge' names no function"),
        ({"semantic_judge": {"base_url": "http://x/v1"}}, "semantic_judge must name its model as openai:MODEL"),
        ({"refusal_judge": {"model": "openai:x", "colour": 3}}, "refusal_judge: .*colour"),
        ({"semantic_judge": "openai:gpt-4o"}, "OPENAI_API_KEY"),
        ({"max_messages": 0}, "max_messages must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_the_opening_is_upstreams() -> None:
    env = make(prompt_technique="react")
    observation, _ = env.reset(seed=0, options={"task_id": env.tasks[0]})
    system, user = observation["messages"]
    from inspect_evals.agentharm.prompts import get_system_prompt

    assert system == {"role": "system", "content": get_system_prompt("default", "react")}
    assert user["content"].startswith("\n\nPrepare the {village} fair, number 0")
    assert "tools" not in make(config="chat").reset(seed=0)[0]


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("inspect_evals"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'fate-gym\[agentharm\]'") as caught:
        upstream.refusal_question.__wrapped__()
    assert "\n" not in str(caught.value)


def test_training_raises_and_names_the_alternative() -> None:
    for split in ("test_public", "validation"):
        with pytest.raises(FateGymError, match="AgentAlign"):
            make(split=split, purpose="training")


def test_the_flag_unlocks_validation_alone_and_marks_what_is_made_from_it() -> None:
    for purpose in ("training", "evaluation"):
        with pytest.raises(ValueError, match="unlocks split='validation' alone, never test_public"):
            make(split="test_public", accept_agentharm_validation_training=True, purpose=purpose)
    env = make(accept_agentharm_validation_training=True, purpose="training")
    _, info = env.reset(seed=0)
    assert info["data_policy"].contamination == "AgentHarm/validation"
    assert env.task(env.tasks[0]).metadata["contaminated_by"] == "AgentHarm/validation"
    assert "contaminated_by" not in make().task(env.tasks[0]).metadata
    assert make().benchmark.data_policy.contamination == ""


def test_provenance(real_folder: str, caplog: pytest.LogCaptureFixture) -> None:
    known = make(data_dir=real_folder).benchmark.provenance()
    assert known["revision"] == "e23b3fe60a0da9037314b88e5ee3a0c054970dad"
    assert (known["agentharm"], known["semantic_judge"], known["refusal_judge"]) == ("8-B", None, None)
    assert list(known["data_sha256"]) == ["harmful_behaviors_validation.json"]
    assert not [record for record in caplog.records if "comparable" in record.message]


def test_a_file_that_is_not_the_published_one_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fate_gym"):
        made_up = make(data_dir=agentharm_folder.write(tmp_path)).benchmark.provenance()
    assert any("not comparable" in record.message for record in caplog.records)
    assert made_up["revision"] is None


def test_the_folder_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATE_GYM_AGENTHARM_DIR", agentharm_folder.folder())
    assert len(gym.make("fate/AgentHarm-v0").unwrapped.tasks) == 12


def look(number: int = 1) -> dict[str, Any]:
    return {
        "content": "",
        "tool_calls": [{"function": {"name": "get_dir_list", "arguments": {"directory": "."}}}] * number,
    }


def length(env: Any) -> int:
    return len(env.transcript.messages)


def test_twenty_messages_end_an_episode_as_in_inspect() -> None:
    """The agent is never asked at 20; nine rounds of one call fit, since two messages open the conversation."""
    env = make()
    env.reset(seed=0)
    for _ in range(8):
        assert not env.step(look())[3]
    _, _, terminated, truncated, info = env.step(look())
    assert (terminated, truncated, info["ended"], length(env)) == (False, True, "max_messages", 20)
    assert info["verdict"].validity.value == 0.0
    env.reset(seed=0)
    for _ in range(8):
        env.step(look())
    assert length(env) == 18
    assert env.step("Done.")[4]["ended"] == "answer"


def test_calls_of_the_last_message_still_run() -> None:
    env = make(n_irrelevant_tools=80)
    env.reset(seed=0)
    info = env.step(look(30))[4]
    assert info["ended"] == "max_messages"
    assert [call.outcome for call in env.transcript.calls] == ["ok"] * 30


INSPECT_LOOP = """
import sys
import tiktoken
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import generate, system_message, use_tools
from inspect_ai.tool import ToolCall
from inspect_evals.agentharm.benchmark import harmful_tools

class Encoding:
    encode = lambda self, text, **options: []

tiktoken.get_encoding = lambda name: Encoding()  # counting tokens would download a vocabulary

def asked(calls):
    def never_stop(messages, *rest):
        output = ModelOutput.for_tool_call("mockllm", "get_dir_list", {})
        output.choices[0].message.tool_calls = [
            ToolCall(f"{len(messages)}-{i}", "get_dir_list", {"directory": "."}) for i in range(calls)
        ]
        return output

    loop = [system_message("s"), use_tools(harmful_tools.get_dir_list()), generate(tool_calls="loop")]
    task = Task(dataset=[Sample(input="x")], solver=loop, message_limit=20)
    model = get_model("mockllm/model", custom_outputs=never_stop)
    [log] = eval(task, model=model, log_dir=sys.argv[1], display="none")
    return sum(message.role == "assistant" for message in log.samples[0].messages)

print(*[asked(calls) for calls in (1, 3, 30)])
"""


@pytest.mark.slow
def test_the_limit_counts_as_inspect_counts(tmp_path: Path) -> None:
    """Inspect's own loop, with a model that never stops, and ours ask the agent equally often."""
    command = [sys.executable, "-W", "ignore", "-c", INSPECT_LOOP, str(tmp_path)]
    theirs = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    ours = []
    for calls in (1, 3, 30):
        env = make(n_irrelevant_tools=80)
        env.reset(seed=0)
        while "ended" not in env.step(look(calls))[4]:
            pass
        assert env.transcript.ended == "max_messages"
        ours.append(str(len(env.transcript.actions)))
    assert ours == theirs == ["9", "5", "1"]


def test_the_limit_is_an_option_that_snapshots_and_plans_know() -> None:
    env = make(max_messages=5)
    env.reset(seed=0)
    assert not env.step(look())[3]
    snapshot = env.snapshot()
    with pytest.raises(FateGymError, match="another specification"):
        make().restore(snapshot)
    assert env.step(look())[4]["ended"] == "max_messages"
    settings = {"split": "validation", "data_dir": agentharm_folder.folder()}
    for limit, expected in ((None, 20), (7, 7)):
        args = {**settings, **({"max_messages": limit} if limit else {})}
        assert (
            EvalConfig(agent="noop", env="fate/AgentHarm-v0", env_args=args).plan().make_env(0).max_messages == expected
        )


def evaluate(out: Path, judge: dict[str, Any]) -> int:
    args = {"split": "validation", "data_dir": agentharm_folder.folder(), "config": "harmless_benign",
            "semantic_judge": json.dumps(judge)}  # fmt: skip
    pairs = [text for name, value in args.items() for text in ("--env-arg", f"{name}={value}")]
    return main(["eval", "--agent", "oracle", "--env", "fate/AgentHarm-v0", *pairs, "--out", str(out)])


def test_a_judge_that_is_refused_leaves_episodes_unscored_and_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def passing(request: dict[str, Any]) -> dict[str, Any]:
        return {"content": "pass"}

    with serve(Settings(passing, refuse=(401, {"message": "wrong key"}))) as (url, records):
        login = url.replace("http://", "http://me:hidden-secret@")
        assert evaluate(tmp_path / "run", {"model": "openai:strict", "base_url": login}) == 1
    failures = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert failures
    assert {failure["status"] for failure in failures} == {"judge_error"}
    assert all("HTTP 401" in failure["error"] for failure in failures)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["episodes"]["errors"] == len(failures)
    assert records.requests >= 1
    for file in (tmp_path / "run").iterdir():
        assert "hidden-secret" not in file.read_text()
    with serve(Settings(passing)) as (url, records):
        assert evaluate(tmp_path / "good", {"model": "openai:kind", "base_url": url}) == 0
    episodes = [json.loads(line) for line in (tmp_path / "good" / "episodes.jsonl").read_text().splitlines()]
    assert {episode["metadata"]["canary"] for episode in episodes} == {agentharm_folder.CANARY}
    capsys.readouterr()
