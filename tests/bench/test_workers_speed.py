"""What two worker processes gain over one, in processor time: how fast they are in seconds depends on who else works.

Processor time is a bound: with two free processors the run takes half of what is spent on it, if nothing waits. So
where one process spends c on an episode, two that spend c + p on it are 2c / (c + p) times as fast. The command's share
p is there however little the workers do: it gives out items, writes lines and resumes who waits for them. A server on
the same two processors that spends s on an episode leaves 2c / (c + p + s).
"""

from __future__ import annotations

import asyncio
import math
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

from fate_gym import evaluate, loops
from fate_gym.agents import load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.evaluation import EvalConfig, run_evaluation
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.playing import Player
from fate_gym.evaluation.workers import Workers, engage
from fate_gym.rollout import Agent

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

ATTACK = "important_instructions"
SUITES = ["workspace", "travel", "banking", "slack"]
SMALL = ["banking", "slack"]
_TURNS = 6
"""Short ones: what else a machine does comes and goes, and the least of each figure is what counts."""


@dataclass(frozen=True)
class Work:
    """What is played: each of 60 tasks so many times, so many episodes at once."""

    agent: Agent
    suites: list[str]
    concurrency: int
    repeats: int

    def seconds(self, out: Path) -> tuple[float, float]:
        """Processor seconds that an episode takes with one worker and with two, in turns: the least of each.

        All workers have started, and each has met all tasks.
        """

        async def main() -> tuple[float, float]:
            beside = multiprocessing.active_children()
            environments = self._config(out, 1).plan().environments
            pools = {count: engage(Player(environments, self.agent, Finished.of), count) for count in (1, 2)}
            least = dict.fromkeys(pools, math.inf)
            try:
                for count, players in pools.items():
                    await self._play(players, out / f"starting {count}", 1)
                    while getattr(players, "_starting", ()):
                        await asyncio.sleep(0.05)
                    await self._play(players, out / f"meeting {count}", 2 * count)
                for turn in range(_TURNS):
                    for count, players in pools.items():
                        before = _spent(beside)
                        episodes = await self._play(players, out / f"measured {count} {turn}", self.repeats)
                        least[count] = min(least[count], (_spent(beside) - before) / episodes)
            finally:
                for players in pools.values():
                    await players.aclose()
            return least[1], least[2]

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

    async def _play(self, players: Workers[Player[Finished]], out: Path, repeats: int) -> int:
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
    work = Work(load_agent("gullible"), SUITES, concurrency=8, repeats=4)
    one, two = work.seconds(tmp_path)
    figures = f"{1e3 * two:.2f} ms", f"{1e3 * one:.2f} ms", f"{2 * one / two:.2f}x", "1.8x"
    table("processor time of an episode, two processes against one", *figures)
    # 1.88 on a quiet machine; 1.56 where others used its host.
    assert 2 * one / two >= 1.5


def test_two_processes_ask_a_server_for_more_than_one(tmp_path: Path, table: Callable[..., None]) -> None:
    """So many episodes at once that one process alone could not keep the server busy."""
    env: Any = gym.make("fate/AgentDojo-v0", suite=SMALL, attack=ATTACK).unwrapped
    with serve_quickly(Scripted("oracle", tasks_by_prompt(env)), latency=0.1) as url:
        agent = OpenAIAgent("m", base_url=url)
        evaluate(agent, suite=SMALL, attack=ATTACK, limit=60, concurrency=64, out=tmp_path / "seen")
        before = server_spent(url)
        one, two = Work(agent, SMALL, concurrency=256, repeats=8).seconds(tmp_path)
        server = server_spent(url) - before
    cost = server.seconds / server.replies
    print(f"\nthe server took {1e3 * cost:.3f} ms for a reply")
    figures = f"{1e3 * two:.2f} ms", f"{1e3 * one:.2f} ms", f"{2 * one / two:.2f}x", "1.8x"
    table("processor time of an episode at a server, 256 at once at 0.1 s, two processes against one", *figures)
    assert server.thought == 0
    # c is 1.6 to 1.9 ms, p 0.05 to 0.2 and s 0.12.
    assert 2 * one / two >= 1.5
