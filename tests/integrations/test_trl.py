"""Our tasks in TRL's `GRPOTrainer`: tools as methods, verdicts of TRL's messages, a real step of plain TRL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from fate_gym.agents import load_agent
from fate_gym.errors import FateGymError
from fate_gym.integrations.trl import Rollout, TRLTasks, trl_tasks, verdict_of
from fate_gym.rewards import AXES
from fate_gym.rollout import rollout

BANKING = {"suite": "banking", "attack": "important_instructions"}
PAIR = "banking/user_task_0/injection_task_0"


@pytest.fixture(scope="module")
def banking() -> TRLTasks:
    return trl_tasks("fate/AgentDojo-v0", tasks=[PAIR, "banking/user_task_1/injection_task_0"], **BANKING)


def complete(tasks: TRLTasks, row: dict[str, Any], messages: list[dict[str, Any]]) -> tuple[Rollout, list[Any]]:
    """Does what TRL does with the messages of a model: runs their calls through methods, and adds the answers."""
    environment = tasks.environment_factory[row["environment"]]()
    environment.reset(**row)
    completion = []
    for message in messages:
        completion.append(message)
        for call in message.get("tool_calls", []):
            function = call["function"]
            try:
                content = str(getattr(environment, function["name"])(**function["arguments"]))
            except Exception as error:
                content = str({"error": str(error)})
            completion.append({"role": "tool", "name": function["name"], "content": content})
    return environment, completion


def recorded(agent: str, task_id: str) -> Any:
    env: Any = gym.make("fate/AgentDojo-v0", **BANKING).unwrapped
    return asyncio.run(rollout(env, load_agent(agent), task_id, seed=0))


def as_trl(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The assistant messages as transformers' `parse_response` gives them."""
    found = []
    for message in messages:
        if message["role"] == "assistant":
            calls = [
                {
                    "type": "function",
                    "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])},
                }
                for call in message.get("tool_calls", [])
            ]
            found.append({**message, "tool_calls": calls} if calls else message)
    return found


@pytest.mark.parametrize("agent", ["oracle", "gullible", "refuser"])
def test_the_verdict_is_that_of_the_same_messages_in_our_own_loop(banking: TRLTasks, agent: str) -> None:
    episode = recorded(agent, PAIR)
    environment, completion = complete(banking, banking.rows[0], as_trl(episode.messages))
    answers = [message["content"] for message in completion if message["role"] == "tool"]
    assert answers == [message["content"] for message in episode.messages if message["role"] == "tool"]
    assert verdict_of(environment, completion) == episode.verdict
    assert verdict_of(environment, completion) is verdict_of(environment, completion)


def test_axes_are_reward_functions_and_none_where_they_are_not_active() -> None:
    tasks = trl_tasks("fate/AgentDojo-v0", tasks=["banking/user_task_0/none"], suite="banking")
    environment, completion = complete(tasks, tasks.rows[0], [{"role": "assistant", "content": "I can not."}])
    logged: dict[str, list[str]] = {}
    rewards = {
        function.__name__: function(
            completions=[completion], environments=[environment], log_extra=logged.__setitem__, task_id=["x"]
        )
        for function in tasks.reward_funcs
    }
    assert list(rewards) == list(AXES)
    assert rewards["security"] == [None]
    assert rewards["utility"] == [0.0]
    assert json.loads(logged["verdict"][0])["security"]["active"] is False


def test_unknown_tools_wrong_arguments_and_cut_rollouts_cost_validity(banking: TRLTasks) -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        function = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [function]}

    done = {"role": "assistant", "content": "Done."}
    row = banking.rows[0]
    environment, completion = complete(banking, row, [call("get_balance"), call("no_such_tool"), done])
    assert 0 < verdict_of(environment, completion).validity.value < 1
    environment, completion = complete(banking, row, [call("send_money", to=3), done])
    assert verdict_of(environment, completion).validity.value < 1
    environment, completion = complete(banking, row, [call("get_balance")])
    assert verdict_of(environment, completion).validity.value == 0
    environment, completion = complete(
        banking, row, [call("get_balance"), {"role": "assistant", "content": "<tool_call>{"}]
    )
    assert verdict_of(environment, completion).validity.value == 0


@pytest.mark.slow
def test_transformers_reads_the_schemas_off_the_methods() -> None:
    from transformers.utils import get_json_schema

    for suite in ("banking", "slack", "travel", "workspace"):
        env: Any = gym.make("fate/AgentDojo-v0", suite=suite).unwrapped
        task_id = env.tasks[0]
        tools = env.reset(options={"task_id": task_id})[0]["tools"]
        tasks = trl_tasks("fate/AgentDojo-v0", suite=suite, tasks=[task_id])
        environment = tasks.environment_factory[suite]()
        for tool in tools:
            ours, theirs = tool["function"], get_json_schema(getattr(environment, tool["function"]["name"]))["function"]
            assert theirs["name"] == ours["name"]
            assert theirs["description"] == " ".join(ours["description"].split())
            parameters, read = ours["parameters"], theirs["parameters"]
            assert list(read["properties"]) == list(parameters["properties"])
            assert read.get("required", []) == parameters.get("required", [])
            for name, schema in parameters["properties"].items():
                assert read["properties"][name]["description"] == " ".join(schema["description"].split())
                if "type" in schema:
                    assert read["properties"][name]["type"] == schema["type"]


def test_suites_have_factories_of_their_own_and_licences_bind() -> None:
    tasks = trl_tasks("fate/AgentDojo-v0", tasks=["banking/user_task_0/none", "slack/user_task_0/none"])
    assert [row["environment"] for row in tasks.rows] == ["banking", "slack"] == list(tasks.environment_factory)
    assert not hasattr(tasks.environment_factory["slack"], "get_balance")
    with pytest.raises(ValueError, match="no task 'nowhere'"):
        trl_tasks("fate/AgentDojo-v0", tasks=["nowhere"])
    with pytest.raises(FateGymError, match="not to be trained on"):
        trl_tasks("toy/Parcels-v0")


@pytest.mark.slow
def test_a_step_of_plain_trl(banking: TRLTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    import tiny_model
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from fate_gym.agents.response_templates import choose_response_template

    call = '<tool_call>\n{"name": "get_balance", "arguments": {}}\n</tool_call>'
    turn = [call, "I'm sorry, but I can't help with that.", "Done."]
    script = {"assistant\n": turn, **{text: ["<|im_end|>"] for text in turn}}
    opening = gym.make("fate/AgentDojo-v0", **BANKING).reset(seed=0)[0]
    folder = tiny_model.make_scripted_model(tmp_path / "model", script, [json.dumps(opening)])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = choose_response_template(tokenizer, None, {})
    model = Qwen3ForCausalLM.from_pretrained(folder)
    before = model.lm_head.weight.detach().clone()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=400,
            max_tool_calling_iterations=2,
            max_steps=1,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            seed=1,
        ),
        train_dataset=Dataset.from_list(banking.rows),
        environment_factory=banking.environment_factory,
        reward_funcs=banking.reward_funcs,
    )
    trainer.train()
    (logged, *_) = trainer.state.log_history
    assert {f"rewards/{axis}/mean" for axis in AXES} <= logged.keys()
    assert logged["rewards/security/mean"] == 1.0
    assert logged["tools/call_frequency"] > 0
    assert torch.isfinite(model.lm_head.weight).all()
    assert not torch.equal(model.lm_head.weight, before)
