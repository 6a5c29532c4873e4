"""What every registered environment keeps: Gymnasium's and MO-Gymnasium's matrix, determinism, forks, junk."""

from __future__ import annotations

import json
import random
import warnings
from typing import Any

import agentharm_folder
import gymnasium as gym
import mo_gymnasium as mo
import numpy as np
import pytest
import trajectories
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat import anything, messages

from fate_gym.agents._random_agent import sample
from fate_gym.benchmark import ENTRY_POINT

IDS = [spec.id for spec in gym.registry.values() if spec.entry_point == ENTRY_POINT]
SMALL: dict[str, dict[str, Any]] = {
    "fate/AgentDojo-v0": {"suite": "banking", "attack": "important_instructions"},
    "fate/AgentHarm-v0": {
        "config": ["harmful", "harmless_benign", "chat"],
        "split": "validation",
        "data_dir": agentharm_folder.folder(),
        "n_irrelevant_tools": 3,
    },
    "fate/ATBench-v0": {"data_dir": trajectories.folder()},
}
CASES = {env_id: (env_id, SMALL.get(env_id, {})) for env_id in IDS} | {
    "paged ATBench": ("fate/ATBench-v0", {**SMALL["fate/ATBench-v0"], "view": "paged"}),
}
"""Every registered environment, and forms of them that differ in how they are played."""

pytestmark = pytest.mark.parametrize("case", CASES)


def make(case: str, **kwargs: Any) -> Any:
    env_id, small = CASES[case]
    return gym.make(env_id, **small, **kwargs)


def make_vec(case: str, **kwargs: Any) -> Any:
    env_id, small = CASES[case]
    return gym.make_vec(env_id, **small, **kwargs)


def play(env: Any, seed: int, moves: int = 3) -> list[Any]:
    """Plays random calls, where there are tools, and an answer; returns all that came back, as JSON."""
    rng = random.Random(seed)
    observation, info = env.reset(seed=seed)
    seen: list[Any] = [observation, info["task_id"]]
    ended = False
    while not ended:
        action = random_call(observation["tools"], rng) if "tools" in observation and moves > 0 else "Done."
        moves -= 1
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        seen += [observation, reward.tolist(), terminated, truncated]
    return [*seen, info["verdict"].to_json()]


def random_call(tools: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    function = rng.choice(tools)["function"]
    arguments = sample(function["parameters"], function["parameters"].get("$defs", {}), rng)
    return {"tool_calls": [{"function": {"name": function["name"], "arguments": arguments}}]}


def test_the_registry_is_not_empty(case: str) -> None:
    assert len(IDS) >= 2


def test_check_env_has_nothing_to_say(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(case, scalarization="min", render_mode="ansi").unwrapped, skip_render_check=False)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(case: str, mode: str) -> None:
    options: dict[str, Any] = {"vectorization_mode": mode}
    if mode == "async":
        options["vector_kwargs"] = {"shared_memory": False}
    envs = make_vec(case, num_envs=2, **options, scalarization=[1, 1, 1, 1])
    try:
        observations, infos = envs.reset(seed=3)
        assert len(observations) == 2
        assert observations[0]["messages"] != []
        assert list(infos["task_id"]) == [make(case).reset(seed=3 + i)[1]["task_id"] for i in range(2)]
        observations, rewards, terminated, _truncated, infos = envs.step(({"content": "Done."}, {"content": None}))
        assert rewards.shape == (2,)
        assert terminated.tolist() == [True, False]
        assert infos["reward_vector"].shape == (2, 4)
        assert observations[1]["messages"][-1]["role"] == "user"
    finally:
        envs.close()


def test_async_with_shared_memory_fails_loudly(case: str) -> None:
    with pytest.raises(ValueError, match="shared_memory=False"):
        make_vec(case, num_envs=1, vectorization_mode="async", scalarization="min")


def test_statistics_of_the_vector(case: str) -> None:
    env = RecordEpisodeStatistics(make(case))
    env.reset(seed=0)
    *_, info = env.step("Done.")
    np.testing.assert_array_equal(info["episode"]["r"], info["verdict"].vector)


def test_mo_gymnasium(case: str) -> None:
    env_id, small = CASES[case]
    env = mo.wrappers.LinearReward(mo.make(env_id, **small), weight=np.array([1.0, 0, 0, 1.0]))
    env.reset(seed=0)
    _, reward, *_, info = env.step("Done.")
    assert reward == pytest.approx(info["verdict"].vector[[0, 3]].sum())
    vector = mo.wrappers.vector.MOSyncVectorEnv([lambda: make(case) for _ in range(2)])
    vector.reset(seed=0)
    _, rewards, *_ = vector.step(("Done.", "Done."))
    assert rewards.shape == (2, 4)
    assert vector.reward_space.shape[-1] == 4
    vector.close()


def test_same_seed_same_actions_same_bytes(case: str) -> None:
    for seed in range(5):
        first, second = (json.dumps(play(make(case), seed)) for _ in range(2))
        assert first == second


def test_forks_of_one_state_are_equal_in_another_environment(case: str) -> None:
    env, twin = make(case).unwrapped, make(case).unwrapped
    observation, _ = env.reset(seed=5)
    tools = observation.get("tools", [{"function": {"name": "none"}}])
    name = tools[0]["function"]["name"]
    env.step({"tool_calls": [{"function": {"name": name, "arguments": {}}}]})
    snapshot = env.snapshot()
    ends = []
    for fork in (env, twin, twin, env):
        fork.restore(snapshot)
        fork.step({"tool_calls": [{"function": {"name": name, "arguments": {}}}]})
        step = fork.step("Done.")
        ends.append(json.dumps([step[0], step[1].tolist(), step[4]["verdict"].to_json()]))
    assert len(set(ends)) == 1


tool_names = st.sampled_from(["send_money", "read_file", "ship", "look", "get_most_recent_transactions"])
texts = st.sampled_from(["{[1]:2}", "-" * 20_000 + "1", "[" * 9_999, "\ud800", "x" * 200_000, "{[1]:2}", "\0", "[1]"])
hostile = st.dictionaries(
    st.sampled_from(["recipient", "amount", "subject", "date", "file_path", "parcel", "n"]), anything | texts
).map(lambda arguments: {"arguments": arguments})
wild_calls = st.builds(
    lambda name, rest: {"tool_calls": [{"id": "same", "function": {"name": name, **rest}}] * 2}, tool_names, hostile
)


@settings(max_examples=60)
@given(actions=st.lists(anything | messages | wild_calls | texts.map(lambda t: {"content": t}), min_size=1, max_size=4))
def test_no_action_raises_or_stops_the_episode_without_a_reason(case: str, actions: list[Any]) -> None:
    env = _shared(case)
    env.reset(seed=0)
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        json.dumps(observation, ensure_ascii=False, allow_nan=False).encode()
        assert env.reward_space.contains(reward)
        assert info["status"] == "ok"
        _assert_every_call_is_answered(observation["messages"])
        if terminated or truncated:
            assert info["ended"] in ("answer", "finished", "max_messages", "max_turns")
            break
        assert "ended" not in info


_ENVS: dict[str, Any] = {}


def _shared(case: str) -> Any:
    if case not in _ENVS:
        _ENVS[case] = make(case).unwrapped
    return _ENVS[case]


def _assert_every_call_is_answered(conversation: list[dict[str, Any]]) -> None:
    for index, message in enumerate(conversation):
        wanted = [call["id"] for call in message.get("tool_calls", ())]
        answers = conversation[index + 1 : index + 1 + len(wanted)]
        assert [answer.get("tool_call_id") for answer in answers] == wanted
