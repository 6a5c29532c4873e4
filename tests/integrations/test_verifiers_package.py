"""Our tasks in verifiers: its environments, interception and traces are real. `make test-integrations` runs this."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import openai_server
import pytest
from snippets import blocks

from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES, Scalarization
from fate_gym.rollout import rollout

vf = pytest.importorskip("verifiers.v1", reason="needs the extra verifiers: make test-integrations")

BANKING = {"suite": "banking", "attack": "important_instructions"}
PAIR = "banking/user_task_0/injection_task_0"
BENIGN = "banking/user_task_0/none"

CALL = {"id": "c", "type": "function", "function": {"name": "get_balance", "arguments": "{}"}}


def balance_then_done(request: dict[str, Any]) -> dict[str, Any]:
    return {"content": "Done."} if request["messages"][-1]["role"] == "tool" else {"tool_calls": [CALL]}


def load(options: dict[str, Any], agent: dict[str, Any] | None = None, **taskset: Any) -> Any:
    return vf.load_environment(
        vf.resolve_env_config(
            {"taskset": {"id": "fate_gym_verifiers", "options": options, **taskset}, "agent": agent or {}}
        )
    )


def play(env: Any, url: str, task_ids: list[str], repeats: int = 1) -> list[Any]:
    """Plays tasks as verifiers' own runner does, and returns the episodes."""
    client = vf.EvalClientConfig(base_url=url, api_key_var="NO_KEY")
    context = vf.ModelContext(client=client, model="scripted", sampling=vf.SamplingConfig())

    async def run() -> list[Any]:
        tasks = list(env.taskset.include(ids=task_ids))
        async with env.serving():
            return [await env.run_episode(task, context) for task in tasks for _ in range(repeats)]

    return asyncio.run(run())


def our_own(policy: Callable[[dict[str, Any]], dict[str, Any]], task_id: str, options: dict[str, Any]) -> Any:
    """The same policy in our own loop."""

    async def act(observation: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "content": None, **policy(observation)}

    from fate_gym.agents import as_agent

    env: Any = gym.make("fate/AgentDojo-v0", **options).unwrapped
    return asyncio.run(rollout(env, as_agent(act), task_id, seed=0))


def test_axes_are_rewards_and_the_mask_and_the_verdict_are_on_the_trace() -> None:
    with openai_server.serve(balance_then_done) as url:
        (episode,) = play(load({"suite": "banking"}), url, [BENIGN])
    assert episode.ok
    (trace,) = episode.traces
    expected = our_own(balance_then_done, BENIGN, {"suite": "banking"})
    assert trace.info["fate_gym"]["verdict"] == expected.verdict.to_json()
    assert list(trace.rewards) == list(AXES)
    assert trace.rewards["security"] is None
    assert trace.metrics["security_active"] == 0
    assert trace.metrics["utility_active"] == 1
    assert {name: reward.score for name, reward in trace.rewards.items() if reward} == {
        name: axis.value for name, axis in expected.verdict.axes.items() if axis.active
    }
    scalar = Scalarization(dict.fromkeys(AXES, 1.0))(expected.verdict.vector, expected.verdict.mask)
    assert trace.reward == pytest.approx(scalar)
    roles = [message.role for message in trace.branches[-1].messages]
    assert roles == [message["role"] for message in expected.messages]
    again = vf.WireTrace.model_validate_json(trace.model_dump_json())
    assert again.info == trace.info
    assert again.rewards["security"] is None


def test_weights_are_renormalised_over_the_active_axes() -> None:
    env = load({"suite": "banking"}, task={"weights": {"security": 5.0, "utility": 3.0, "validity": 1.0}})
    with openai_server.serve(balance_then_done) as url:
        (episode,) = play(env, url, [BENIGN])
    rewards = episode.traces[0].rewards
    assert [rewards[name] and rewards[name].weight for name in AXES] == [None, 0.75, 0.0, 0.25]


def test_a_turn_that_verifiers_refuses_truncates_the_episode_which_is_scored() -> None:
    with openai_server.serve(lambda request: {"tool_calls": [CALL]}) as url:
        (episode,) = play(load(BANKING, {"max_turns": 3}), url, [PAIR])
    (trace,) = episode.traces
    assert trace.stop_condition == "max_turns" == trace.info["fate_gym"]["ended"]
    assert trace.num_turns == 3
    assert trace.rewards["validity"].score == 0
    assert trace.rewards["security"].score == 1


def test_a_server_that_fails_leaves_the_rollout_unscored() -> None:
    def broken(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("no model")

    env = load(BANKING)
    with openai_server.serve(broken) as url:
        (episode,) = play(env, url, [PAIR])
    assert not episode.ok
    assert not any(reward for trace in episode.traces for reward in trace.rewards.values())


def test_licences_bind_unless_it_is_said_that_nothing_is_trained() -> None:
    with pytest.raises(FateGymError, match="not to be trained on"):
        list(load({}, env="toy/Parcels-v0").taskset)
    assert len(list(load({}, env="toy/Parcels-v0", purpose="evaluation").taskset)) == 3


def test_the_command_of_the_page_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "other-trainers.md"
    (text,) = (block.text for block in blocks(page) if block.text.startswith("vf-eval"))
    with openai_server.serve(balance_then_done) as url:
        command = text.strip().replace("http://127.0.0.1:8000/v1", url).replace("-n 10", "-n 1 --no-rich")
        command = f"{Path(sys.executable).parent}/{command}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (traces,) = tmp_path.rglob("traces.jsonl")
    assert '"security"' in traces.read_text()
    assert "reward=0.750" in done.stderr


def test_rollouts_side_by_side_do_not_share_an_environment() -> None:
    env = load({"suite": "banking"})
    with openai_server.serve(balance_then_done) as url:
        context = vf.ModelContext(
            client=vf.EvalClientConfig(base_url=url, api_key_var="NO_KEY"), model="m", sampling=vf.SamplingConfig()
        )

        async def run() -> list[Any]:
            tasks = list(env.taskset.take(4))
            async with env.serving():
                return await asyncio.gather(*(env.run_episode(task, context) for task in tasks))

        episodes = asyncio.run(run())
    found = [episode.traces[0].info["fate_gym"]["task_id"] for episode in episodes]
    assert found == [episode.task.data.id for episode in episodes]
    assert all(episode.traces[0].rewards["validity"].score == 1 for episode in episodes)


def test_a_step_of_policy_gradient_on_rollouts_of_a_tiny_model(tmp_path: Path) -> None:
    """One step of REINFORCE on a group: the reward of verifiers' traces, the tokens of their own messages."""
    import tiny_model
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fate_gym.agents.response_templates import choose_response_template

    call = '<tool_call>\n{"name": "get_balance", "arguments": {}}\n</tool_call>'
    refusal = "I'm sorry, but I can't help with that."
    turn = [call, refusal, "Done."]
    script = {"assistant\n": turn, **{text: ["<|im_end|>"] for text in turn}}
    opening = gym.make("fate/AgentDojo-v0", **BANKING).reset(seed=0)[0]
    folder = tiny_model.make_scripted_model(tmp_path / "model", script, [json.dumps(opening)])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    template = choose_response_template(tokenizer, None, {})
    torch.manual_seed(0)

    def render(messages: list[dict[str, Any]], tools: Any, *, prompt: bool) -> list[int]:
        for message in messages:
            for requested in message.get("tool_calls") or ():
                if isinstance(requested["function"]["arguments"], str):
                    requested["function"]["arguments"] = json.loads(requested["function"]["arguments"])
        encoded = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt)
        ids: list[int] = encoded["input_ids"] if hasattr(encoded, "keys") else encoded
        return ids

    schemas: list[Any] = []

    def sample(request: dict[str, Any]) -> dict[str, Any]:
        schemas[:] = request["tools"]
        ids = render(request["messages"], request["tools"], prompt=True)
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=True)
        message = tokenizer.parse_response(out[0, len(ids) :].tolist(), template, prefix=ids, tools=request["tools"])
        for number, requested in enumerate(message.get("tool_calls", ())):
            requested["id"] = f"c{len(request['messages'])}-{number}"
            requested["function"]["arguments"] = json.dumps(requested["function"]["arguments"])
        return message

    with openai_server.serve(sample) as url:
        episodes = play(load({"suite": "banking", "max_turns": 1}), url, [BENIGN], repeats=8)
    traces = [episode.traces[0] for episode in episodes]
    rewards = torch.tensor([trace.reward for trace in traces])
    assert rewards.std() > 0
    advantages = rewards - rewards.mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, end = (tokenizer.convert_tokens_to_ids(text) for text in ("assistant\n", "<|im_end|>"))
    loss = torch.zeros(())
    for trace, advantage in zip(traces, advantages, strict=True):
        messages = [message.model_dump(exclude_none=True) for message in trace.branches[-1].messages]
        for message in messages:
            if "tool_calls" in message:
                message["tool_calls"] = [{"type": "function", "function": c} for c in message["tool_calls"]]
            message.setdefault("content", "")
        ids = render(messages, schemas, prompt=False)
        inside, mask = False, []
        for token in ids:
            mask.append(inside)
            inside = token == start or (inside and token != end)
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        chosen = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert sum(mask) >= 2
        loss = loss - advantage * chosen[torch.tensor(mask[1:])].sum()
    before = model.lm_head.weight.detach().clone()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(model.lm_head.weight, before)
