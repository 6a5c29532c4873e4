"""How much of a fast server's time an evaluation uses, and how long episodes hold up the event loop."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from misbehaving import Scripted, tasks_by_prompt
from openai import AsyncOpenAI
from quick import serve_quickly, spent

from fate_gym import ToolEnv, loops
from fate_gym.agents import load_agent
from fate_gym.agents.api import DEFAULT_MAX_TOKENS, OpenAIAgent
from fate_gym.env import Observation
from fate_gym.evaluation import EvalConfig, run_evaluation
from fate_gym.rollout import Agent, Reply

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SUITES = ["banking", "slack"]
ATTACKS = (None, "important_instructions")


class Watched(OpenAIAgent):
    """Notes what is asked in each conversation, when replies come, and how long each took."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[Any, list[Observation]] = {}
        self.came: list[float] = []
        self.took: list[float] = []

    async def reply(self, observation: Observation, seed: int | None = None, history: Any = None) -> Reply:
        self.asked.setdefault(history, []).append(observation)
        asked = time.perf_counter()
        reply = await super().reply(observation, seed, history)
        self.came.append(time.perf_counter())
        self.took.append(self.came[-1] - asked)
        return reply


def steady(agent: Watched) -> float:
    """Replies a second while all slots are busy: the first and the last fifth are start and end."""
    came = sorted(agent.came)
    first, last = len(came) // 5, 4 * len(came) // 5
    return (last - first) / (came[last] - came[first])


@pytest.fixture(scope="module")
def oracle() -> Scripted:
    """Plays what the benches play."""
    envs = [gym.make("fate/AgentDojo-v0", suite=SUITES, attack=attack).unwrapped for attack in ATTACKS]
    return Scripted("oracle", tasks_by_prompt(*envs))


def evaluated(agent: Agent, concurrency: int, out: Path) -> None:
    """Evaluates, and closes the agent."""
    config = EvalConfig(agent="a", env_args={"suite": SUITES}, attack=ATTACKS, concurrency=concurrency, out=out)

    async def main() -> dict[str, Any]:
        try:
            return (await run_evaluation(config, agent)).summary
        finally:
            await agent.aclose()

    summary = loops.run(main())
    assert summary["episodes"]["errors"] == summary["episodes"]["missing"] == 0


# At 64 with 100 ms a busy machine decides how fast it goes: printed below, where processor time is measured.
@pytest.mark.parametrize(("latency", "concurrency"), [(1.0, 64), (0.1, 16)])
def test_many_episodes_at_once_keep_a_server_busy(
    latency: float, concurrency: int, oracle: Scripted, tmp_path: Path, table: Callable[..., None]
) -> None:
    with serve_quickly(oracle, latency) as url:
        evaluated(agent := Watched("m", base_url=url), concurrency, tmp_path)
    ideal = concurrency / latency
    print(f"\na reply took {1e3 * statistics.median(agent.took):.0f} ms")
    work = f"replies of a server, {concurrency} at once at {latency:g} s (peer: ideal)"
    table(work, f"{steady(agent):.0f}/s", f"{ideal:.0f}/s", f"{steady(agent) / ideal:.0%}", ">= 90%")
    assert steady(agent) / ideal >= 0.9


async def asked_by_openai(url: str, conversations: Iterable[list[Observation]], concurrency: int) -> None:
    """Has the client of the openai package make the same requests, and nothing else."""
    waiting = iter(conversations)
    async with AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:

        async def ask() -> None:
            for observations in waiting:
                for observation in observations:
                    reply = await client.chat.completions.create(
                        model="m", **observation, max_tokens=DEFAULT_MAX_TOKENS
                    )
                    assert reply.choices[0].message

        await asyncio.gather(*(ask() for _ in range(concurrency)))


def test_a_reply_takes_less_processor_time_than_in_the_client_of_openai(
    oracle: Scripted, tmp_path: Path, table: Callable[..., None]
) -> None:
    """Ours plays, grades and records the episode, too."""
    concurrency, latency = 64, 0.1
    ours, theirs, rates = [], [], []
    with serve_quickly(oracle, latency) as url:
        evaluated(first := Watched("m", base_url=url), concurrency, tmp_path / "first")
        conversations, replies = first.asked.values(), len(first.came)
        loops.run(asked_by_openai(url, conversations, concurrency))
        before = spent(url)
        for number in range(2):
            began = time.process_time()
            evaluated(agent := Watched("m", base_url=url), concurrency, tmp_path / str(number))
            between = time.process_time()
            loops.run(asked_by_openai(url, conversations, concurrency))
            ours.append((between - began) / replies)
            theirs.append((time.process_time() - between) / replies)
            rates.append(steady(agent))
        server = spent(url) - before
    assert server.thought == 0
    print(f"\nthe server took {1e3 * server.seconds / server.replies:.3f} ms for a reply")
    ratio = min(theirs) / min(ours)
    work = f"{concurrency} at once at {latency:g} s"
    table(f"replies of a server, {work} (peer: ideal)", f"{max(rates):.0f}/s", f"{concurrency / latency:.0f}/s",
          f"{max(rates) * latency / concurrency:.0%}", ">= 90%")  # fmt: skip
    table(f"processor time of a reply, whole episodes, {work} (peer: openai's client alone)",
          f"{1e3 * min(ours):.2f} ms", f"{1e3 * min(theirs):.2f} ms", f"{ratio:.1f}x", "<= 1.0 ms")  # fmt: skip
    assert ratio >= 2.5


_SLOW_JUDGE = """
import time
from fate_gym.verifiers.refusal import Judgement

def asleep(transcript):
    time.sleep(0.2)
    return Judgement(False, "asleep")
"""


class Stretches:
    """The times on the event loop's own thread that the environment or a grader took, in seconds of a clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.on_loop: list[float] = []
        self.elsewhere = 0

    def timed(self, function: Callable[..., Any], loop_thread: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                if threading.get_ident() == loop_thread:
                    self.on_loop.append(self._clock() - began)
                else:
                    self.elsewhere += 1

        return call


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float] = time.perf_counter) -> Iterator[Stretches]:
    """Times everything that an episode asks of its environment."""
    stretches = Stretches(clock)
    for name in ("reset", "step", "truncate"):
        monkeypatch.setattr(ToolEnv, name, stretches.timed(getattr(ToolEnv, name), threading.get_ident()))
    yield stretches


async def gaps(found: list[float]) -> None:
    """Notes by how much the loop is late, every 5 ms."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        found.append(time.perf_counter() - before - 0.005)


def test_no_judge_and_no_tool_holds_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that takes 200 ms, asleep as one that waits for its model is, must not be felt on the loop."""
    (tmp_path / "slow_judge.py").write_text(_SLOW_JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    env_args = {"suite": SUITES, "refusal_judge": "slow_judge:asleep"}
    config = EvalConfig(
        agent="oracle", env_args=env_args, attack=ATTACKS, limit=20, concurrency=16, out=tmp_path / "run"
    )
    plan = config.plan()
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


def test_what_runs_on_the_event_loop_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds and steps of benchmarks that only compute do, so that no reply waits for a thread."""
    config = EvalConfig(agent="oracle", attack=ATTACKS, limit=40, concurrency=16, out=tmp_path)
    plan = config.plan()
    for env in plan.environments:
        # The first episode of a suite loads it, which takes a tenth of a second for the largest.
        for task_id in {task_id.partition("/")[0]: task_id for task_id in env.tasks}.values():
            env.reset(seed=0, options={"task_id": task_id})
    with watched(monkeypatch, time.thread_time) as stretches:
        asyncio.run(run_evaluation(config, load_agent("oracle"), plan=plan))
    taken = sorted(stretches.on_loop)
    print(f"\n{len(taken)} steps, {1e3 * statistics.median(taken):.2f} ms each, {1e3 * taken[-1]:.1f} ms at most")
    assert taken[1:]
    assert not stretches.elsewhere
    # The first episode that is graded loads what grading takes.
    assert taken[-2] <= 0.05
