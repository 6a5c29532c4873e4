"""How much of a fast server's time an evaluation uses, and how long episodes hold up the event loop."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from misbehaving import Scripted, Settings, serve_apart, tasks_by_prompt

from fate_gym import ToolEnv
from fate_gym.agents import load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.evaluation import EvalConfig, run_evaluation

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SUITES = ["banking", "slack"]
ATTACKS = (None, "important_instructions")


class Timed(OpenAIAgent):
    """Notes when replies come, and how long each took."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.came: list[float] = []
        self.took: list[float] = []

    async def reply(self, *args: Any, **kwargs: Any) -> Any:
        asked = time.perf_counter()
        reply = await super().reply(*args, **kwargs)
        self.came.append(time.perf_counter())
        self.took.append(self.came[-1] - asked)
        return reply


def steady(agent: Timed) -> float:
    """Replies a second while all slots are busy: the first and the last fifth are start and end."""
    came = sorted(agent.came)
    first, last = len(came) // 5, 4 * len(came) // 5
    return (last - first) / (came[last] - came[first])


# A reply costs one interpreter about 2 ms, half of them the client's own: 64 at once with 100 ms would need 1.7.
@pytest.mark.parametrize(("latency", "concurrency"), [(1.0, 64), (0.1, 16)])
def test_many_episodes_at_once_keep_a_server_busy(
    latency: float, concurrency: int, tmp_path: Path, table: Callable[..., None]
) -> None:
    envs = [gym.make("fate/AgentDojo-v0", suite=SUITES, attack=attack).unwrapped for attack in ATTACKS]
    settings = Settings(Scripted("oracle", tasks_by_prompt(*envs)), latency=latency)
    config = EvalConfig(
        agent="timed",
        env_args={"suite": SUITES},
        attack=ATTACKS,
        concurrency=concurrency,
        out=tmp_path,
    )
    plan = config.plan()
    with serve_apart(settings) as url:
        agent = Timed("m", base_url=url)

        async def main() -> dict[str, Any]:
            try:
                return (await run_evaluation(config, agent, plan=plan)).summary
            finally:
                await agent.aclose()

        began = time.process_time()
        summary = asyncio.run(main())
        busy = (time.process_time() - began) / len(agent.came)
    assert summary["episodes"]["errors"] == summary["episodes"]["missing"] == 0
    ideal, median = concurrency / latency, statistics.median(agent.took)
    print(f"\n{steady(agent):.0f} replies/s of {ideal:.0f} ({steady(agent) / ideal:.0%}); ", end="")
    print(f"a reply took {1e3 * median:.0f} ms, and {1e3 * busy:.2f} ms of this process")
    work = f"replies of a server, {concurrency} at once at {latency:g} s"
    table(f"{work} (peer: ideal)", f"{steady(agent):.0f}/s", f"{ideal:.0f}/s", f"{steady(agent) / ideal:.0%}", ">= 90%")
    table(f"{work}: our processor time for one", f"{1e3 * busy:.2f} ms", target="<= 1.0 ms")
    assert steady(agent) / ideal >= 0.9


class Stretches:
    """The times on the event loop's own thread that the environment or a grader took, in seconds."""

    def __init__(self) -> None:
        self.on_loop: list[float] = []
        self.elsewhere = 0

    def timed(self, function: Callable[..., Any], loop_thread: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if threading.get_ident() == loop_thread:
                    self.on_loop.append(time.perf_counter() - began)
                else:
                    self.elsewhere += 1

        return call


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stretches]:
    """Times everything that an episode asks of its environment."""
    stretches = Stretches()
    for name in ("reset", "step", "truncate"):
        monkeypatch.setattr(ToolEnv, name, stretches.timed(getattr(ToolEnv, name), threading.get_ident()))
    yield stretches


async def gaps(found: list[float]) -> None:
    """Notes by how much the loop is late, every 5 ms."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        found.append(time.perf_counter() - before - 0.005)


def test_no_slow_grader_or_tool_holds_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grader made slow (200 ms, asleep as one that waits for a judge is) must not be felt on the loop."""
    config = EvalConfig(
        agent="oracle", env_args={"suite": SUITES}, attack=ATTACKS, limit=20, concurrency=16, out=tmp_path
    )
    plan = config.plan()
    verify = type(plan.benchmarks[0]).verify

    def slow(*args: Any) -> Any:
        time.sleep(0.2)
        return verify(*args)

    monkeypatch.setattr(type(plan.benchmarks[0]), "verify", slow)
    late: list[float] = []
    with watched(monkeypatch) as stretches:

        async def main() -> dict[str, Any]:
            monitor = asyncio.create_task(gaps(late))
            run = await run_evaluation(config, load_agent("oracle"), plan=plan)
            monitor.cancel()
            return run.summary

        summary = asyncio.run(main())
    assert summary["episodes"]["errors"] == 0
    assert stretches.elsewhere > 3 * summary["episodes"]["scored"] > 0
    print(f"\n{len(stretches.on_loop)} stretches on the loop's thread; ", end="")
    print(f"late by {1e3 * max(late):.0f} ms at most, {1e3 * statistics.median(late):.1f} ms in the median")
    assert max(stretches.on_loop, default=0.0) <= 0.05
    # A busy machine and summary statistics make the loop late too; a grader on it would, at every look.
    assert statistics.quantiles(late, n=20)[-1] <= 0.05
