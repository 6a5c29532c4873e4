"""Speed against AgentDojo's own harness, as ratios measured in one process; times are printed, never asserted."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from official import injections, run_pair

from fate_gym.agents import load_agent
from fate_gym.benchmarks.agentdojo.upstream import suites
from fate_gym.rollout import rollout

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]

ATTACK = "important_instructions"
SUITES = ("workspace", "travel", "banking", "slack")


def make(suite: str, **kwargs: Any) -> Any:
    return gym.make("fate/AgentDojo-v0", suite=suite, attack=ATTACK, max_turns=60, **kwargs)


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median time of one call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@pytest.mark.parametrize("suite", SUITES)
def test_a_warm_reset_is_100_times_faster_than_upstreams_loader(suite: str) -> None:
    env, upstream = make(suite), suites("v1.2.2")[suite]
    task_id = env.unwrapped.tasks[len(env.unwrapped.tasks) // 2]
    injected = env.reset(options={"task_id": task_id})[1]["injections"]

    def ours() -> None:
        env.reset(seed=0, options={"task_id": task_id})

    def ours_with_state() -> None:
        ours()
        _ = env.unwrapped._world.environment

    def theirs() -> None:
        upstream.load_and_inject_default_environment(injected)

    for warm in (ours_with_state, theirs):
        warm()
    rounds = [(seconds(theirs, 3), seconds(ours, 100), seconds(ours_with_state, 100)) for _ in range(5)]
    loader, reset, ready = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"\n{suite}: loader {1e3 * loader:.2f} ms, reset {1e6 * reset:.0f} us ({loader / reset:.0f}x), ", end="")
    print(f"reset and state {1e6 * ready:.0f} us ({loader / ready:.0f}x)")
    assert loader / reset >= 100


def test_a_snapshot_and_its_restore_cost_less_than_a_tool_call() -> None:
    for suite, name in (("workspace", "get_unread_emails"), ("banking", "get_most_recent_transactions")):
        env = make(suite).unwrapped
        env.reset(seed=0)
        act = {"tool_calls": [{"function": {"name": name, "arguments": {}}}]}
        env.step(act)
        saved = env.snapshot()
        fork, step = [], []
        for _ in range(60):
            started = time.perf_counter()
            env.restore(saved)
            env._world.environment  # noqa: B018 (a restore that only promised the state would be no restore)
            saved = env.snapshot()
            fork.append(time.perf_counter() - started)
            started = time.perf_counter()
            env.step(act)
            step.append(time.perf_counter() - started)
        print(f"\n{suite}: snapshot and restore {1e6 * statistics.median(fork):.0f} us, ", end="")
        print(f"a call {1e6 * statistics.median(step):.0f} us")


def test_a_ground_truth_replay_of_all_pairs_is_5_times_faster_than_upstreams_harness() -> None:
    ratios = {}
    for suite in SUITES:
        env, upstream, agent = make(suite).unwrapped, suites("v1.2.2")[suite], load_agent("oracle")
        pairs = {task_id: tuple(task_id.split("/")[1:]) for task_id in env.tasks}
        injected = injections(upstream, ATTACK, list(pairs.values()))
        asyncio.run(rollout(env, agent, env.tasks[0], 0))
        run_pair(upstream, *pairs[env.tasks[0]], injected[pairs[env.tasks[0]]], "benign")
        ours = theirs = 0.0
        tasks = list(pairs.items())
        # Turn by turn, so that a busy machine slows both down.
        for start in range(0, len(tasks), 20):
            chunk = tasks[start : start + 20]
            gc.collect()
            before = time.perf_counter()
            asyncio.run(_replay(env, agent, [task_id for task_id, _ in chunk]))
            between = time.perf_counter()
            for _, pair in chunk:
                assert run_pair(upstream, *pair, injected[pair], "benign") == (True, False)
            ours += between - before
            theirs += time.perf_counter() - between
        ratios[suite] = theirs / ours
        print(f"\n{suite}: {len(tasks) / theirs:.1f} -> {len(tasks) / ours:.1f} episodes/s ({ratios[suite]:.1f}x)", end="")
    mean = statistics.geometric_mean(ratios.values())
    print(f"\ngeometric mean {mean:.1f}x")
    assert min(ratios.values()) >= 3
    assert mean >= 5


async def _replay(env: Any, agent: Any, task_ids: list[str]) -> None:
    for task_id in task_ids:
        result = await rollout(env, agent, task_id, seed=0)
        assert result.verdict.utility.value == 1.0
