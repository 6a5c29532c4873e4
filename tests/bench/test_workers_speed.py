"""What two worker processes gain over one, in processor time: how fast they are in seconds depends on who else works.

Processor time is a bound: with two free processors the run takes half of what is spent on it, if nothing waits.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import pytest
from misbehaving import Scripted, tasks_by_prompt
from quick import serve_quickly
from quick import spent as server_spent

from fate_gym import loops
from fate_gym.agents import load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.evaluation import EvalConfig, run_evaluation
from fate_gym.evaluation.playing import Player
from fate_gym.evaluation.workers import Workers, engage
from fate_gym.rollout import Agent

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

ATTACK = "important_instructions"
SUITES = ["workspace", "travel", "banking", "slack"]
SMALL = ["banking", "slack"]


@dataclass(frozen=True)
class Work:
    """What is played: each of 60 tasks so many times, so many episodes at once."""

    agent: Agent
    suites: list[str]
    concurrency: int
    repeats: int

    def seconds(self, workers: int, out: Path) -> float:
        """Processor seconds that an episode takes, once all workers have started and each has met all tasks."""

        async def main() -> float:
            beside = multiprocessing.active_children()
            players = engage(Player(self._config(out, 1).plan().environments, self.agent), workers)
            try:
                await self._play(players, out / "starting", 1)
                while getattr(players, "_starting", ()):
                    await asyncio.sleep(0.05)
                await self._play(players, out / "meeting", 2 * workers)
                before = _spent(beside)
                episodes = await self._play(players, out / "measured", self.repeats)
                return (_spent(beside) - before) / episodes
            finally:
                await players.aclose()

        return loops.run(main())

    def _config(self, out: Path, repeats: int) -> EvalConfig:
        return EvalConfig(
            agent="a",
            env_args={"suite": self.suites},
            attack=(ATTACK,),
            limit=60,
            repeats=repeats,
            concurrency=self.concurrency,
            out=out,
        )

    async def _play(self, players: Workers[Player], out: Path, repeats: int) -> int:
        """Plays each task so many times, and returns the number of episodes."""
        config = self._config(out, repeats)
        plan = config.plan()
        run = await run_evaluation(config, self.agent, plan=plan, workers=players)
        assert run.summary["episodes"]["scored"] == len(plan.items)
        return len(plan.items)


def _spent(beside: Sequence[BaseProcess]) -> float:
    """Processor seconds that this process and its workers have taken; other children are not counted."""
    ours = [child.pid for child in multiprocessing.active_children() if child not in beside]
    times = [psutil.Process(pid).cpu_times() for pid in [None, *ours]]
    return sum(time.user + time.system for time in times)


def test_two_processes_are_worth_more_than_one(tmp_path: Path, table: Callable[..., None]) -> None:
    work = Work(load_agent("gullible"), SUITES, concurrency=8, repeats=8)
    one, two = (work.seconds(workers, tmp_path / str(workers)) for workers in (1, 2))
    figures = f"{1e3 * two:.2f} ms", f"{1e3 * one:.2f} ms", f"{2 * one / two:.2f}x", "1.8x"
    table("processor time of an episode, two processes against one", *figures)
    # 1.86 to 2.28 on a quiet machine.
    assert 2 * one / two >= 1.5


def test_two_processes_ask_a_server_for_more_than_one(tmp_path: Path, table: Callable[..., None]) -> None:
    """So many episodes at once that one process alone could not keep the server busy."""
    env: Any = gym.make("fate/AgentDojo-v0", suite=SMALL, attack=ATTACK).unwrapped
    with serve_quickly(Scripted("oracle", tasks_by_prompt(env)), latency=0.1) as url:
        agent = OpenAIAgent("m", base_url=url)
        Work(agent, SMALL, concurrency=64, repeats=1).seconds(1, tmp_path / "seen")
        before = server_spent(url)
        work = Work(agent, SMALL, concurrency=256, repeats=16)
        one, two = (work.seconds(workers, tmp_path / str(workers)) for workers in (1, 2))
        server = server_spent(url) - before
    cost = server.seconds / server.replies
    print(f"\nthe server took {1e3 * cost:.3f} ms for a reply")
    figures = f"{1e3 * two:.2f} ms", f"{1e3 * one:.2f} ms", f"{2 * one / two:.2f}x", "1.8x"
    table("processor time of an episode at a server, 256 at once at 0.1 s, two processes against one", *figures)
    assert server.thought == 0
    # 1.68 to 1.88 on a quiet machine.
    assert 2 * one / two >= 1.5
