"""What every registered environment keeps: Gymnasium's and MO-Gymnasium's matrix, determinism, forks, junk."""

from __future__ import annotations

import dataclasses
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
from test_actions import anything, messages

from fate_gym.agents._random_agent import sample
from fate_gym.benchmark import ENTRY_POINT
from fate_gym.errors import SnapshotError
from fate_gym.snapshots import pack, unpack

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
    "fate/RJudge-v0": {"data_dir": trajectories.folder()},
    "fate/ASSEBench-v0": {"data_dir": trajectories.folder()},
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
        observations, rewards, terminated, _truncated, infos = envs.step(({"content": "Done."}, {"tool_calls": "?"}))
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


texts = st.sampled_from(
    [
        *("{[1]:2}", "-" * 20_000 + "1", "[" * 9_999, "\ud800", "x" * 200_000, "\0", "</think>", "<tool_call>{}"),
        # AgentDojo reads lists out of strings.
        *("[1]", "['\\ud800']", "[b'x']", "[{1}]", "[1j]", "[...]", "[(1, {2: 3})]", "[1e999]", f"[{'9' * 4_000}]"),
    ]
)
numbers = st.sampled_from([float("nan"), float("inf"), 10**301, -(10**4_299), True, 5e-324])


class Raises:
    """Raises out of whatever is asked of it."""

    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise BaseException(name)


class Liar(str):
    """A text that claims to equal anything."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError


ODD: dict[str, Any] = {
    "object": Raises,
    "text": lambda: Liar("x"),
    "fields": lambda: {Liar("content"): Liar("x"), "extra": Raises()},
    "call": lambda: {"tool_calls": [Raises(), {"function": {"name": Liar("look"), "arguments": {"x": Raises()}}}]},
}


@dataclasses.dataclass(frozen=True)
class _Odd:
    """Stands for an object that Hypothesis could not hold itself."""

    kind: str


def wild_calls(tools: list[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """Calls of real tools with some of their own parameters, whatever these then hold."""
    functions = [tool["function"] for tool in tools] or [{"name": "look", "parameters": {"properties": {"x": {}}}}]
    values = anything | texts | numbers | st.lists(texts | numbers, max_size=2) | st.builds(object)

    def one(function: dict[str, Any]) -> st.SearchStrategy[Any]:
        properties = sorted(function["parameters"].get("properties", {}))
        arguments = st.fixed_dictionaries({}, optional=dict.fromkeys([*properties, "unknown"], values))
        given_as = arguments.map(lambda a: a) | st.dictionaries(st.sampled_from([*properties, "y"]), texts).map(
            json.dumps
        )
        return given_as.map(lambda a: {"id": "same", "function": {"name": function["name"], "arguments": a}})

    call = st.sampled_from(functions).flatmap(one)
    return st.lists(call, min_size=1, max_size=3).map(lambda calls: {"content": None, "tool_calls": calls})


@settings(max_examples=100)
@given(data=st.data())
def test_no_action_leaves_an_episode_unscored(case: str, data: st.DataObject) -> None:
    """The law of issue after issue: what a model sends may cost it points, never buy it a way out of the score."""
    env = _shared(case)
    observation, _ = env.reset(seed=data.draw(st.integers(0, 9)))
    odd = st.sampled_from(["object", "text", "fields", "call"]).map(_Odd)
    actions = wild_calls(observation.get("tools", [])) | anything | messages | odd | texts.map(lambda t: {"content": t})
    ended = False
    for _ in range(data.draw(st.integers(1, 4))):
        action = data.draw(actions)
        action = ODD[action.kind]() if isinstance(action, _Odd) else action
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        json.dumps(observation, ensure_ascii=False, allow_nan=False).encode()
        assert env.reward_space.contains(reward)
        assert info["status"] == "ok", info
        _assert_every_call_is_answered(observation["messages"])
        ended = terminated or truncated
        if ended:
            assert info["ended"] in ("answer", "finished", "max_messages", "max_turns")
            break
        assert "ended" not in info
        env.restore(env.snapshot())
    if not ended:
        info = env.step("Done.")[4]
    assert info["status"] == "ok", info
    assert info["reward_mask"].any()
    transcript = env.transcript
    recorded = [transcript.actions, [call.arguments for call in transcript.calls], info["verdict"].to_json()]
    json.dumps(recorded, ensure_ascii=False, allow_nan=False).encode()
    assert _replayed(case, info["task_id"], env._play.seed, transcript.actions) == info["verdict"].to_json()


def _replayed(case: str, task_id: str, seed: int, actions: list[Any]) -> Any:
    """The verdict of recorded actions that are played again, after a journey through JSON."""
    env = _shared(case)
    env.reset(seed=seed, options={"task_id": task_id})
    for action in json.loads(json.dumps(actions)):
        info = env.step(action)[4]
    return info["verdict"].to_json()


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


@settings(max_examples=60)
@given(data=st.data())
def test_no_bytes_but_its_own_are_a_snapshot(case: str, data: st.DataObject) -> None:
    """Right checksums included: a forger can compute them."""
    env = _shared(case)
    env.reset(seed=0)
    own = env.snapshot()
    state, world = unpack(env._fingerprint, own)
    junk = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({})
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(["task_id", "seed", "rounds", "rng", "transcript"]))
        state = {**state, name: data.draw(junk)}
    else:
        world = data.draw(st.binary(min_size=1) | st.just(b"[1]") | st.just(b"cos\nsystem\n(S'x'\ntR."))
    forged = pack(env._fingerprint, state, world)
    try:
        env.restore(forged)
    except SnapshotError:
        assert env.snapshot() == own
    else:
        # What can be restored is a state of an episode: it goes on to a score.
        assert env.step("Done.")[4]["status"] == "ok"
