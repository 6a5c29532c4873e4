"""What two worker processes gain over one, in processor time: how fast they are in seconds depends on who else works.

Processor time is a bound: with two free processors the run takes half of what is spent on it, if nothing waits.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fate_gym.agents import load_agent
from fate_gym.evaluation import EvalConfig, run_evaluation
from fate_gym.evaluation.playing import Player
from fate_gym.evaluation.workers import engage

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

SUITES = ["workspace", "travel", "banking", "slack"]


def spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def seconds(agent: Any, workers: int, repeats: int, out: Path, concurrency: int) -> tuple[float, int]:
    """Processor seconds of a run, and its number of episodes."""
    config = EvalConfig(
        agent="a",
        env_args={"suite": SUITES},
        attack=("important_instructions",),
        limit=60,
        repeats=repeats,
        concurrency=concurrency,
        out=out / f"{workers}-{repeats}",
    )
    plan = config.plan()

    async def main() -> int:
        players = engage(Player(plan.environments, agent), workers)
        try:
            await players.do(Player.check, True)
            run = await run_evaluation(config, agent, plan=plan, workers=players)
        finally:
            await players.aclose()
        assert run.summary["episodes"]["errors"] == run.summary["episodes"]["missing"] == 0
        return len(run.episodes)

    before = spent()
    episodes = asyncio.run(main())
    return spent() - before, episodes


def marginal(agent: Any, workers: int, out: Path, concurrency: int) -> float:
    """Processor seconds that one more episode takes, without what starting takes."""
    few, many = (seconds(agent, workers, repeats, out, concurrency) for repeats in (2, 12))
    return (many[0] - few[0]) / (many[1] - few[1])


def test_two_processes_are_worth_more_than_one(tmp_path: Path, table: Callable[..., None]) -> None:
    one, two = (marginal(load_agent("gullible"), workers, tmp_path, 8) for workers in (1, 2))
    figures = f"{1e3 * two:.2f} ms", f"{1e3 * one:.2f} ms", f"{2 * one / two:.2f}x", "1.8x"
    table("processor time of an episode, two processes against one", *figures)
    # 1.99 on a quiet machine; where others work on the same processors, 1.48 to 1.68.
    assert 2 * one / two >= 1.4
