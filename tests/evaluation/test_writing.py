"""Episodes that end while the disk is busy are stored together, and each is safe when it is said to be."""

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from small_episodes import make_episode

from fate_gym import evaluate
from fate_gym.errors import DiskError
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.store import SCHEMA, RunFolder
from fate_gym.evaluation.writing import Writer

MANIFEST = {"schema": SCHEMA, "config": {}, "digest": "d"}


class Disk:
    """Holds back each fsync until `let`, and counts those that begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.count = 0
        self._free = threading.Semaphore(0)
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._wait)

    def let(self) -> None:
        self._free.release()

    def _wait(self, fd: int) -> None:
        self.count += 1
        self.begun.release()
        self._free.acquire()
        self._sync(fd)


def finished(key: str, **fields: Any) -> Finished:
    return Finished.of(make_episode(key, **fields))


def stored(path: Path, work: Callable[[Writer], Awaitable[Any]]) -> list[str]:
    """The keys of a run after some work with its writer."""
    with RunFolder.open(path, MANIFEST) as folder:

        async def main() -> None:
            await work(Writer(folder))

        asyncio.run(main())
    return [episode.key for episode in RunFolder.read(path).episodes()]


def test_what_ends_while_the_disk_is_busy_is_stored_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(writer: Writer) -> None:
        disk = Disk(monkeypatch)
        first = asyncio.create_task(writer.store(finished("first")))
        await asyncio.to_thread(disk.begun.acquire)
        others = [asyncio.create_task(writer.store(finished(f"other {number}"))) for number in range(5)]
        errored = finished("errored", status="provider_error", error="no line")
        others.append(asyncio.create_task(writer.store(errored)))
        disk.let()
        await first
        await asyncio.to_thread(disk.begun.acquire)
        # Theirs is not over, so none of them may count as safe.
        assert not any(task.done() for task in others)
        disk.let()
        await asyncio.to_thread(disk.begun.acquire)
        assert not any(task.done() for task in others)
        disk.let()
        await asyncio.gather(*others)
        assert disk.count == 3  # The first, the others, and the one in the file of failures.

    assert stored(tmp_path, work) == ["first", *(f"other {number}" for number in range(5))]
    assert [episode.key for episode in RunFolder.read(tmp_path).failures()] == ["errored"]


def test_all_that_are_stored_together_hear_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def work(writer: Writer) -> None:
        await writer.store(finished("before"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            episodes = [writer.store(finished(f"lost {number}")) for number in range(3)]
            for error in await asyncio.gather(*episodes, return_exceptions=True):
                assert isinstance(error, DiskError)
                assert "No space left" in str(error)
        await writer.store(finished("after"))

    assert stored(tmp_path, work) == ["before", "after"]


def test_an_evaluation_stores_together_what_ends_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    sync = os.fsync

    def note(fd: int) -> None:
        waits.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    meeting = asyncio.Barrier(16)

    async def act(observation: Any) -> str:
        await meeting.wait()
        return "done"

    run = evaluate(act, suite="slack", limit=16, concurrency=16, out=tmp_path / "run")
    assert run.summary["episodes"]["scored"] == 16
    assert 1 <= waits.count(str(tmp_path / "run" / "episodes.jsonl")) <= 3
