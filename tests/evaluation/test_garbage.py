"""What Python does about garbage while episodes are played, and after."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import fate_gym
from fate_gym.evaluation.garbage import looking_seldom


def test_python_looks_seldom_until_the_last_evaluation_ends(tmp_path: Path) -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    seen: list[tuple[tuple[int, ...], int]] = []

    async def act(observation: Any) -> str:
        seen.append((gc.get_threshold(), gc.get_freeze_count()))
        return "done"

    fate_gym.evaluate(act, suite="slack", limit=1, out=tmp_path / "run")
    assert all(threshold[0] > 10 * before[0] and count > frozen for threshold, count in seen)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


def test_evaluations_at_once_leave_it_as_it_was() -> None:
    before = gc.get_threshold()

    async def one(begin: asyncio.Event, end: asyncio.Event) -> None:
        await begin.wait()
        with looking_seldom():
            await end.wait()

    async def main() -> None:
        begin, middle, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(one(begin, middle)), asyncio.create_task(one(begin, end))]
        begin.set()
        await asyncio.sleep(0)
        middle.set()
        await tasks[0]
        assert gc.get_threshold() != before
        end.set()
        await tasks[1]

    asyncio.run(main())
    assert gc.get_threshold() == before
