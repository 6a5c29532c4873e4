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
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str
from agentdojo.functions_runtime import FunctionsRuntime
from official import injections, run_pair

from fate_gym import ToolEnv
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


def in_turns(*jobs: tuple[Callable[[], Any], int], rounds: int = 9) -> list[float]:
    """Times jobs in turns and takes each one's best round: what a busy machine adds is no property of the code."""
    taken = [[seconds(function, repeats) for function, repeats in jobs] for _ in range(rounds)]
    return [min(column) for column in zip(*taken, strict=True)]


@pytest.mark.parametrize("suite", SUITES)
def test_a_warm_reset_is_100_times_faster_than_upstreams_loader(suite: str, table: Callable[..., None]) -> None:
    env, upstream = make(suite), suites("v1.2.2")[suite]
    task_id = env.unwrapped.tasks[len(env.unwrapped.tasks) // 2]
    injected = env.reset(options={"task_id": task_id})[1]["injections"]

    def ours() -> None:
        env.reset(seed=0, options={"task_id": task_id})

    def ours_with_state() -> None:
        ours()
        _ = env.unwrapped._play.world.environment

    def theirs() -> None:
        upstream.load_and_inject_default_environment(injected)

    for warm in (ours_with_state, theirs):
        warm()
    loader, reset, ready = in_turns((theirs, 5), (ours, 100), (ours_with_state, 100))
    print(f"\n{suite}: loader {1e3 * loader:.2f} ms, reset {1e6 * reset:.0f} us ({loader / reset:.0f}x), ", end="")
    print(f"reset and state {1e6 * ready:.0f} us ({loader / ready:.0f}x)")
    table(
        f"reset, {suite} (peer: AgentDojo's loader)",
        f"{1e6 * reset:.0f} us",
        f"{1e6 * loader:.0f} us",
        f"{loader / reset:.0f}x",
        ">= 100x",
    )
    assert loader / reset >= 100


@pytest.mark.parametrize(
    ("suite", "name"), [("workspace", "get_received_emails"), ("banking", "get_most_recent_transactions")]
)
def test_a_restore_and_a_snapshot_cost_less_than_one_tool_call_of_upstreams(suite: str, name: str) -> None:
    env, upstream = make(suite).unwrapped, suites("v1.2.2")[suite]
    act = {"tool_calls": [{"function": {"name": name, "arguments": {}}}]}
    env.reset(seed=0)
    env.step(act)
    saved = env.snapshot()
    environment, runtime = upstream.load_and_inject_default_environment({}), FunctionsRuntime(upstream.tools)

    def fork() -> None:
        env.restore(saved)
        _ = env._play.world.environment
        env.snapshot()

    def theirs() -> None:
        tool_result_to_str(runtime.run_function(environment, name, {})[0])

    call, forked = in_turns((theirs, 5), (fork, 20))
    print(f"\n{suite}: restore and snapshot {1e6 * forked:.0f} us, {name} {1e6 * call:.0f} us ({call / forked:.1f}x)")
    assert forked < call


def test_a_ground_truth_replay_of_all_pairs_is_10_times_faster_than_upstreams_harness(
    table: Callable[..., None],
) -> None:
    """Processor time, so that a busy machine changes little; the calls to play are known before, as an agent's are."""
    ratios, engine = {}, {}
    for suite in SUITES:
        env, upstream = make(suite).unwrapped, suites("v1.2.2")[suite]
        pairs = {task_id: tuple(task_id.split("/")[1:]) for task_id in env.tasks}
        injected = injections(upstream, ATTACK, list(pairs.values()))
        times = {"ours": 0.0, "engine": 0.0, "theirs": 0.0}
        tasks = list(pairs.items())
        truths = {task_id: env.task(task_id, privileged=True).ground_truth.user for task_id in env.tasks}
        _replay(env, env.tasks[0], truths)
        run_pair(upstream, *pairs[env.tasks[0]], injected[pairs[env.tasks[0]]], "benign")
        # Turn by turn, so that a busy machine slows all down alike.
        for start in range(0, len(tasks), 48):
            chunk = tasks[start : start + 48]
            for name in times:
                gc.collect()
                before = time.process_time()
                if name == "ours":
                    for task_id, _ in chunk:
                        _replay(env, task_id, truths)
                elif name == "engine":
                    asyncio.run(_replay_at_once(env, [task_id for task_id, _ in chunk]))
                else:
                    for _, pair in chunk:
                        assert run_pair(upstream, *pair, injected[pair], "benign") == (True, False)
                times[name] += time.process_time() - before
        ratios[suite], engine[suite] = times["theirs"] / times["ours"], times["theirs"] / times["engine"]
        rates = {name: len(tasks) / spent for name, spent in times.items()}
        print(f"\n{suite}: {rates['theirs']:.1f} -> {rates['ours']:.1f} episodes/s ({ratios[suite]:.1f}x); ", end="")
        print(f"through the asynchronous engine {rates['engine']:.1f} ({engine[suite]:.1f}x)", end="")
        ours, theirs = (f"{1e3 / rates[name]:.2f} ms" for name in ("ours", "theirs"))
        table(f"scored episode, {suite} (peer: AgentDojo's harness)", ours, theirs, f"{ratios[suite]:.1f}x", ">= 6x")
    mean = statistics.geometric_mean(ratios.values())
    print(f"\ngeometric mean {mean:.1f}x, engine {statistics.geometric_mean(engine.values()):.1f}x")
    table("scored episode, geometric mean of the suites", "", "", f"{mean:.1f}x", ">= 12x")
    assert min(ratios.values()) >= 6
    assert mean >= 10.5


def _replay(env: Any, task_id: str, truths: dict[str, Any]) -> None:
    """Plays a ground truth through the environment, as `GroundTruthPipeline` does through AgentDojo's harness."""
    truth = truths[task_id]
    env.reset(seed=0, options={"task_id": task_id})
    for name, arguments in truth.calls:
        env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
    _, reward, terminated, *_ = env.step(truth.answer or "Done.")
    assert terminated
    assert reward.tolist() == [1.0] * 4


async def _replay_at_once(env: Any, task_ids: list[str]) -> None:
    """The same through `rollout`, eight episodes at once, as an evaluation runs them."""
    waiting = iter(task_ids)

    async def work(own: Any) -> None:
        for task_id in waiting:
            assert (await rollout(own, load_agent("oracle"), task_id, seed=0)).verdict.utility.value == 1.0

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work(ToolEnv(env.benchmark, max_turns=60)))
