"""Episodes played by worker processes: the same lines, whatever happens to a process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shop_plugin
import shop_workers

from fate_gym.agents import load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.agents.defences import defend
from fate_gym.errors import FateGymError, PluginError, UsageError, WorkerError
from fate_gym.evaluation import EvalConfig, Run, RunFolder, run_evaluation
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.hosting import Answer, DiedError
from fate_gym.evaluation.playing import Player
from fate_gym.evaluation.workers import Backend, InProcess, WorkerPool, engage
from fate_gym.rollout import as_agent
from fate_gym.serving import Pacer
from fate_gym.share import Share, take_share

TOY = "shop_plugin:toy/Parcels-v0"


def run(
    agent: Any,
    out: Path,
    *,
    workers: int = 2,
    backend: Backend = "local",
    check: bool = True,
    on_done: Callable[[Finished], None] = lambda finished: None,
    **settings: Any,
) -> Run:
    acting = load_agent(agent) if isinstance(agent, str) else as_agent(agent)
    config = EvalConfig(
        agent=acting.name, out=out, workers=workers, backend=backend, **{"env": TOY, "repeats": 4, **settings}
    )

    async def body() -> Run:
        plan = config.plan()
        players = engage(Player(plan.environments, acting, Finished.of), workers, backend, on_gpu=acting.on_gpu)
        try:
            if check:
                await players.do(Player.check, plan.has_tools())
            return await run_evaluation(config, acting, plan=plan, workers=players, on_done=on_done)
        finally:
            await players.aclose()

    return asyncio.run(body())


def lines(folder: Path) -> list[str]:
    """Episodes sorted by key, with recorded times left out."""
    episodes = sorted(RunFolder.read(folder).episodes(), key=lambda episode: episode.key)
    return [json.dumps({**episode.to_json(), "seconds": None}, sort_keys=True) for episode in episodes]


def test_two_workers_write_the_lines_of_one(tmp_path: Path) -> None:
    run(shop_workers.Clerk(), tmp_path / "one", workers=1)
    run(shop_workers.Clerk(), tmp_path / "two", workers=2)
    assert len(lines(tmp_path / "one")) == 12
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


@pytest.mark.slow
def test_two_workers_go_on_where_one_stood(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "env": "fate/AgentDojo-v0",
        "env_args": {"suite": ["banking", "slack"]},
        "attack": (None, "tool_knowledge"),
        "repeats": 1,
    }
    run("random", tmp_path / "one", workers=1, limit=12, **settings)
    run("random", tmp_path / "two", workers=1, limit=4, **settings)
    run("random", tmp_path / "two", workers=2, limit=12, **settings)
    assert len(lines(tmp_path / "one")) == 24
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("lives", [1, 100])
def test_a_worker_that_dies_is_replaced_and_its_episodes_are_played_again(
    lives: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = tmp_path / "lives"
    left.write_text(str(lives))
    agent = shop_workers.Deadly(left)
    # One at a time, so that the episode that kills costs no other its tries.
    found = run(agent, tmp_path / "run", repeats=1, concurrency=1)
    told = [record.getMessage() for record in caplog.records if "worker process ended" in record.getMessage()]
    assert told[0].startswith("a worker process ended (killed, as the system does where memory runs out): another")
    if lives == 1:
        assert len(told) == 1
        assert found.summary["episodes"] == {"planned": 3, "scored": 3, "errors": 0, "missing": 0}
        run(shop_workers.Clerk(), tmp_path / "one", workers=1, repeats=1)
        assert lines(tmp_path / "run") == lines(tmp_path / "one")
        return
    assert len(told) == 3
    assert found.summary["episodes"] == {"planned": 3, "scored": 2, "errors": 1, "missing": 0}
    assert found.failures[0].status == "env_error"
    assert "3 worker processes died at it" in str(found.failures[0].error)
    left.write_text("0")
    assert run(agent, tmp_path / "run", repeats=1).summary["episodes"]["scored"] == 3


@pytest.mark.slow
def test_an_agent_that_is_exhausted_in_one_process_ends_the_run(tmp_path: Path) -> None:
    found = run(shop_workers.Spent(), tmp_path / "run", concurrency=2)
    assert found.exhausted == "no more today"
    assert found.summary["episodes"]["missing"] > 0


@pytest.mark.slow
def test_a_bug_is_shown_once_and_ends_a_run_in_which_nothing_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PluginError, match=r"its first \d+ episodes failed alike \(KeyError in shop_workers.py, line"):
        run(shop_workers.buggy, tmp_path / "run", repeats=20, concurrency=2)
    shown = [record for record in caplog.records if "counts as an error" in record.getMessage()]
    assert len(shown) == 1
    assert 'return observation["nothing"]' in str(shown[0].exc_text)


@pytest.mark.slow
def test_what_all_workers_log_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(shop_workers.Talker(), tmp_path / "run")
    assert [record.getMessage() for record in caplog.records].count("the clerk is busy") == 1


def test_what_cannot_be_sent_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be sent to another process.*import:MODULE:NAME") as caught:
        run(lambda observation: "Done.", tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_cannot_be_made_elsewhere_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a worker process cannot make what plays: ValueError: no such clerk here"):
        run(shop_workers.Unmakeable(os.getpid()), tmp_path / "run")


class Remote:
    """A worker that is nowhere: it starts, or dies while it starts, when `begun` is set."""

    def __init__(self, begun: asyncio.Event, dies: bool, started: asyncio.Event) -> None:
        self._begun, self._dies, self._started = begun, dies, started

    async def start(self) -> Answer:
        await self._begun.wait()
        if self._dies:
            raise DiedError("killed")
        self._started.set()
        return Answer(None, None, ())

    async def do(self, work: Callable[..., Any], piece: object) -> Answer:
        return Answer(piece, None, ())

    async def aclose(self) -> Answer:
        return Answer(None, None, ())

    def end(self) -> None:
        pass


def test_a_worker_that_dies_while_it_starts_is_replaced_if_another_has_worked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        at_once, later, first, second = (asyncio.Event() for _ in range(4))
        at_once.set()
        deaths = iter([True, True, False])

        def make(share: Share) -> Remote:
            return Remote(later, next(deaths), second) if share.index else Remote(at_once, False, first)

        pool: WorkerPool[Player[Finished]] = WorkerPool(make, 2)
        assert await pool.do(Player.check, True) is True
        later.set()
        await second.wait()
        await pool.aclose()

    asyncio.run(main())
    told = "a worker process ended while it started (killed): another takes its place"
    assert [record.getMessage() for record in caplog.records] == [told] * 2


def test_workers_that_never_start_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Their interpreter ends before it has begun.
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    with pytest.raises(WorkerError, match="worker processes end while they start: exit code 1"):
        run(shop_workers.Clerk(), tmp_path / "run")


@pytest.mark.parametrize(
    "agent",
    [
        load_agent("oracle"),
        load_agent("noop"),
        OpenAIAgent("m", base_url="http://user:pass@127.0.0.1:9/v1", temperature=0.5),
        load_agent("hf:nowhere", temperature=0.7),
        defend(shop_plugin.clerk, "spotlighting", "safety_prompt", "tool_filter", "repeat_user_prompt"),
    ],
    ids=lambda agent: agent.name,
)
def test_agents_are_sent_as_the_call_that_made_them(agent: Any) -> None:
    twin = pickle.loads(pickle.dumps(agent))  # noqa: S301 (our own bytes)
    assert type(twin) is type(agent)
    assert (twin.name, twin.privileged, twin.unpriced) == (agent.name, agent.privileged, agent.unpriced)


def test_a_key_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "sk-secret-of-the-shop")
    agent = OpenAIAgent("m", base_url="http://127.0.0.1:9/v1", api_key_env="SHOP_KEY")
    assert b"secret-of-the-shop" not in pickle.dumps(agent)


def test_the_rate_of_a_run_is_that_of_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    slots: list[float] = []

    async def sleep(seconds: float) -> None:
        slots.append(now[0] + seconds)

    monkeypatch.setattr("fate_gym.serving._retrying.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fate_gym.serving._retrying.asyncio.sleep", sleep)
    try:
        for index in range(3):
            take_share(Share(index, 3))
            pacer = Pacer(60)
            for _ in range(4):
                asyncio.run(pacer.turn())
    finally:
        take_share(Share())
    assert sorted(slots) == [float(second) for second in range(12)]


def test_one_worker_needs_no_process() -> None:
    assert isinstance(engage(Player([], load_agent("noop"), Finished.of), 1), InProcess)


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), BaseExceptionGroup("two", [asyncio.CancelledError()])])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_agent_awaits_may_be_cancelled_and_no_episode_is_missing(
    tmp_path: Path, raised: BaseException, workers: int
) -> None:
    found = run(shop_workers.Raising(raised), tmp_path / "run", workers=workers, concurrency=2)
    # The attacked task's alone.
    assert found.summary["episodes"] == {"planned": 12, "scored": 8, "errors": 4, "missing": 0}
    assert {failure.status for failure in found.failures} == {"provider_error"}


def test_a_log_that_cannot_be_sent_is_told_without_what_cannot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(run(shop_workers.Locked("log"), tmp_path / "run", repeats=1).episodes) == 3
    assert [record.getMessage() for record in caplog.records].count("the door is shut") == 1


@pytest.mark.timeout(60)
def test_an_answer_that_cannot_be_sent_ends_the_run_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(FateGymError, match="what a worker did cannot be sent to the command: TypeError: cannot pickle"):
        run(shop_workers.Locked("reason"), tmp_path / "run", repeats=1)
