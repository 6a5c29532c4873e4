"""Environments are pickled, copied and described at any moment."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from shop_plugin import HOSTILE  # noqa: F401 (registers the toy benchmark)
from test_contract import CASES, make

from fate_gym import ToolEnv

COPIES = {"pickle": lambda env: pickle.loads(pickle.dumps(env)), "deepcopy": copy.deepcopy}  # noqa: S301


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("case", CASES)
def test_a_copy_goes_on_as_the_original_would(case: str, how: str) -> None:
    env = make(case)
    fresh = COPIES[how](env)
    assert [fresh.reset(seed=7)[0], fresh.spec] == [env.reset(seed=7)[0], env.spec]
    observation, _ = env.reset(seed=5)
    name = observation.get("tools", [{"function": {"name": "none"}}])[0]["function"]["name"]
    call = {"tool_calls": [{"function": {"name": name, "arguments": {}}}]}
    env.step(call)
    running = COPIES[how](env)
    ends = [json.dumps([e.step(call)[0], e.step("Done.")[4]["verdict"].to_json()]) for e in (running, env)]
    assert ends[0] == ends[1]
    # The generator goes along: an episode without a seed is the same one.
    assert [running.reset()[1]["task_id"] for _ in range(3)] == [env.reset()[1]["task_id"] for _ in range(3)]


@pytest.mark.parametrize("how", COPIES)
def test_an_episode_that_is_over_stays_over(how: str) -> None:
    env = gym.make("toy/Parcels-v0", render_mode="ansi", max_turns=3, scalarization=lowest)
    env.reset(seed=0, options={"task_id": "shop/ship-attacked"})
    reward = env.step("Done.")[1]
    twin = COPIES[how](env)
    assert twin.render() == env.render()
    assert "utility" in twin.render()
    assert repr(twin) == repr(env)
    with pytest.raises(gym.error.ResetNeeded, match="the episode is over"):
        twin.step("x")
    twin.reset(seed=0, options={"task_id": "shop/ship-attacked"})
    assert twin.step("Done.")[1] == reward == 0.0


def test_a_copy_and_its_original_share_nothing_that_changes() -> None:
    env = gym.make("toy/Parcels-v0")
    env.reset(seed=0, options={"task_id": "shop/ship"})
    twin = copy.deepcopy(env)
    twin.step({"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]})
    assert env.step("Done.")[4]["verdict"].utility.value == 0.0
    assert twin.step("Done.")[4]["verdict"].utility.value == 1.0


def lowest(vector: Any, mask: Any) -> float:
    return float(np.where(mask, vector, 1.0).min())


def test_what_cannot_be_pickled_is_named_and_can_still_be_copied() -> None:
    env = gym.make("toy/Parcels-v0", scalarization=lambda vector, mask: vector.sum())
    with pytest.raises(TypeError, match="its option 'scalarization' is <function"):
        pickle.dumps(env)
    copy.deepcopy(env).reset(seed=0)
    odd = gym.make("toy/Parcels-v0", broken=lambda: None)
    with pytest.raises(TypeError, match="its option 'broken' is <function"):
        pickle.dumps(odd)


def test_an_environment_says_what_it_is_and_where() -> None:
    env: Any = gym.make("fate/AgentDojo-v0", suite="banking", attack="direct").unwrapped
    assert repr(env) == str(env) == "<ToolEnv fate/AgentDojo-v0 suite='banking' attack='direct': 144 tasks>"
    env.reset(options={"task_id": "banking/user_task_3/injection_task_5"})
    env.step("Done.")
    assert repr(env).endswith(": 144 tasks; at banking/user_task_3/injection_task_5, turns taken: 1, ended: answer>")
    assert "secret" not in repr(ToolEnv("parcels:Parcels", broken="http://user:secret@host"))


def test_html_is_a_way_to_render() -> None:
    env = gym.make("fate/AgentDojo-v0", suite="banking", attack="direct", render_mode="html")
    env.reset(seed=0, options={"task_id": "banking/user_task_3/injection_task_5"})
    call = {"function": {"name": "get_most_recent_transactions", "arguments": {"n": 5}}}
    env.step({"tool_calls": [call]})
    running: Any = env.render()
    assert "<mark" in running
    assert "over_refusal_control" not in running
    env.step("Done.")
    over: Any = env.render()
    assert "over_refusal_control" in over._repr_html_()


def test_a_scalarization_may_be_a_function() -> None:
    env = gym.make("toy/Parcels-v0", scalarization=lambda vector, mask: (vector * mask).sum() / mask.sum())
    env.reset(seed=0, options={"task_id": "shop/ship"})
    _, reward, *_, info = env.step("Done.")
    assert reward == pytest.approx(2 / 3)
    assert isinstance(reward, float)
    assert info["reward_vector"].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_a_vector_environment_that_wants_floats_is_told_how_to_get_them() -> None:
    envs = gym.make_vec("toy/Parcels-v0", num_envs=1, vectorization_mode="sync")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="setting an array element") as error:
        envs.step(("Done.",))
    assert "scalarization='min'" in str(error.value.__cause__)
    with pytest.raises(ValueError, match="shared_memory=False") as error:
        gym.make_vec("toy/Parcels-v0", num_envs=1, vectorization_mode="async", scalarization="min")
    assert "vector_kwargs={'shared_memory': False}" in str(error.value.__cause__)


def test_repeating_a_call_that_failed_is_told() -> None:
    env = gym.make("toy/Parcels-v0")
    env.reset(seed=0, options={"task_id": "shop/ship"})
    call = {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": -1}}}]}
    assert "problem" not in env.step(call)[4]
    assert "it repeats a call that failed: no such parcel" in env.step(call)[4]["problem"]
