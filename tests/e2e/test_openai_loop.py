"""The three-line loop of the design, with the real client, over a real socket."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import openai
import pytest
from openai_server import serve

import fate_gym


def test_three_lines_play_an_episode() -> None:
    def policy(request: dict[str, Any]) -> dict[str, Any]:
        answers = [message for message in request["messages"] if message["role"] == "tool"]
        if len(answers) == 2:
            return {"content": "Your balance is there."}
        names = [tool["function"]["name"] for tool in request["tools"]]
        assert "get_balance" in names
        calls = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate([("get_balance", "{}"), ("get_balance", "{broken")])
        ]
        return {"tool_calls": calls}

    env = gym.make("fate/AgentDojo-v0", suite="banking")
    with serve(policy) as url, openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        obs, info = env.reset(seed=0)
        terminated = truncated = False
        while not (terminated or truncated):
            reply = client.chat.completions.create(model="scripted", **obs).choices[0].message
            obs, reward, terminated, truncated, info = env.step(reply)
    assert info["ended"] == "answer"
    assert reward.shape == (4,)
    assert info["verdict"].validity.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("env_id", ["fate/AgentDojo-v0", "toy/Parcels-v0"])
def test_after_any_junk_the_api_takes_the_conversation(env_id: str) -> None:
    from openai_server import complaint

    env = gym.make(env_id, max_turns=10, **({"suite": "slack"} if "Dojo" in env_id else {})).unwrapped
    assert isinstance(env, fate_gym.ToolEnv)
    obs, _ = env.reset(seed=0)
    junk: list[Any] = [
        None, {"content": ""}, {"tool_calls": ["x", {}, {"id": "a", "function": {"name": "\ud800", "arguments": "["}}]},
        {"tool_calls": [{"id": "a", "function": {"name": "look"}}] * 3}, {"role": "user", "content": "hm"},
    ]  # fmt: skip
    for action in junk:
        obs, _, terminated, *_ = env.step(action)
        assert complaint(json.loads(json.dumps({"model": "m", **obs}))) is None
        if terminated:  # An empty message is an answer.
            env.reset(seed=0)
