"""Workers: who does pieces of work, and where. What is done is the same in this process, in others, or on a cluster."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from fate_gym.errors import LostError, UsageError, WorkerError
from fate_gym.evaluation.hosting import Answer, DiedError, RemoteWorker, Sent
from fate_gym.plugins import imported_plugins
from fate_gym.share import Share

Backend: TypeAlias = Literal["local", "ray"]
"""Where processes run: on this machine, or on a Ray cluster."""

MOST_DEATHS: Final = 3
"""Processes that may die at the same piece of work before it is given up."""

_log = logging.getLogger("fate_gym")


class Worker(Protocol):
    """Does pieces of work, any number at once, on one event loop. Its methods say what it can do."""

    async def aclose(self) -> None:
        """Frees what it holds."""
        ...


W = TypeVar("W", bound=Worker)
T = TypeVar("T")
R = TypeVar("R")


class Workers(ABC, Generic[W]):
    """Some workers, all alike."""

    @abstractmethod
    async def do(self, work: Callable[[W, T], Awaitable[R]], piece: T) -> R:
        """Has one of them do a piece of work.

        Args:
            work: A method of the worker's class.
            piece: Its argument.

        Raises:
            LostError: The processes of several workers died at it, one after the other.
            WorkerError: There is no worker left.
            Exception: What the method raised.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Ends them."""


class InProcess(Workers[W]):
    """One worker in this process, on the event loop of the caller."""

    def __init__(self, worker: W) -> None:
        self._worker = worker

    async def do(self, work: Callable[[W, T], Awaitable[R]], piece: T) -> R:
        """Does a piece of work."""
        return await work(self._worker, piece)

    async def aclose(self) -> None:
        """Closes the worker."""
        await self._worker.aclose()


class WorkerPool(Workers[W]):
    """Several workers, each in a process of its own.

    A piece goes to the worker that is at the fewest. Where a process dies (out of memory, a machine lost), another
    takes its place, and what it was at is done again by any of them. The processes start with the first piece.

    Args:
        make: Makes a remote worker for a share of the work; it starts later.
        count: Number of workers.
    """

    def __init__(self, make: Callable[[Share], RemoteWorker], count: int) -> None:
        self._make = make
        self._places = [_Place(Share(index, count)) for index in range(count)]
        self._starting: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._begun = self._proven = False
        self._failure: Exception | None = None
        self._told: set[tuple[str, str]] = set()

    async def do(self, work: Callable[[W, T], Awaitable[R]], piece: T) -> R:
        """Has a worker do a piece of work; see `Workers`."""
        for _ in range(MOST_DEATHS):
            place, worker = await self._idlest()
            place.busy += 1
            try:
                answer = await worker.do(work, piece)
            except DiedError as death:
                last = death
                self._replace(place, worker, death)
            else:
                result: R = self._opened(answer)
                return result
            finally:
                place.busy -= 1
        raise LostError(f"{MOST_DEATHS} worker processes died at it, one after the other ({last})")

    async def aclose(self) -> None:
        """Lets idle workers close themselves, and ends all processes; what the others are at is left."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        idle = [place.worker for place in self._places if place.worker is not None and not place.busy]
        try:
            for answer in await asyncio.gather(*(worker.aclose() for worker in idle), return_exceptions=True):
                if isinstance(answer, Answer):
                    self._tell(answer)
        finally:
            for place in self._places:
                place.end()

    async def _idlest(self) -> tuple[_Place, RemoteWorker]:
        """Returns the worker that is at the fewest pieces, with its place; waits while none is ready.

        Raises:
            Exception: No worker can be made; what the first one met.
        """
        if not self._begun:
            self._begun = True
            for place in self._places:
                self._start(place)
        while True:
            ready = [(place, place.worker) for place in self._places if place.worker is not None]
            if ready:
                return min(ready, key=lambda entry: entry[0].busy)
            if self._failure is not None and not self._starting:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def _start(self, place: _Place) -> None:
        task = asyncio.create_task(self._fill(place))
        self._starting.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._starting.discard(task)
            self._changed.set()

        task.add_done_callback(ended)

    async def _fill(self, place: _Place) -> None:
        """Puts a worker into an empty place."""
        for deaths in range(1, MOST_DEATHS + 1):
            try:
                worker = self._make(place.share)
            except Exception as error:
                # It would be met again: no such package, no such cluster.
                self._failure = self._failure or error
                break
            try:
                answer = await worker.start()
                self._opened(answer)
            except DiedError as death:
                worker.end()
                self._failure = self._failure or WorkerError(f"worker processes end while they start: {death}")
                # What has never worked is not tried again and again.
                if not self._proven or deaths == MOST_DEATHS:
                    break
                _log.warning("a worker process ended while it started (%s): another takes its place", death)
            except Exception as error:
                worker.end()
                self._failure = self._failure or error
                break
            except BaseException:
                worker.end()
                raise
            else:
                place.worker, self._proven = worker, True
                return
        if self._proven:
            _log.warning("no worker takes the place of one that ended: %s", self._failure)

    def _replace(self, place: _Place, worker: RemoteWorker, death: DiedError) -> None:
        """Puts another worker in the place of one that has died; all the pieces that it was at call this."""
        if place.worker is not worker:
            return
        _log.warning("a worker process ended (%s): another takes its place, and what it was at is done again", death)
        place.end()
        self._start(place)

    def _opened(self, answer: Answer) -> Any:
        self._tell(answer)
        if answer.error is not None:
            raise answer.error
        return answer.result

    def _tell(self, answer: Answer) -> None:
        """Logs here what was logged there; what every worker says alike is said once."""
        for record in answer.logged:
            what = record.name, record.getMessage()
            if what not in self._told:
                self._told.add(what)
                logging.getLogger(record.name).handle(record)


@dataclass(slots=True, eq=False)
class _Place:
    """Where a worker of a pool is, or one takes over from another.

    Attributes:
        share: The share of the work.
        worker: Its worker, None while there is none that is ready.
        busy: Number of pieces that it is at.
    """

    share: Share
    worker: RemoteWorker | None = None
    busy: int = 0

    def end(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None


async def keep_busy(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Does so much at once that several workers have something to do: each call of `work` takes one piece at a time.

    Args:
        count: Pieces under way at once.
        work: Takes pieces from where all calls take them, until there is none.

    Raises:
        Exception: What one of them raised; it ends the others. A full disk meets all alike, so the first says it all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except* Exception as failures:
        raise failures.exceptions[0] from None


def engage(worker: W, count: int, backend: Backend = "local", *, on_gpu: bool | None = False) -> Workers[W]:
    """Returns so many workers like the one given.

    Args:
        worker: The worker itself if it is the only one in this process, or what all are copies of. It is sent to
            processes by `pickle`.
        count: Number of workers.
        backend: Where they are.
        on_gpu: Whether a cluster gives each of them a graphics card; None if it does where it has any.

    Raises:
        UsageError: The worker cannot be sent to another process, or a package is missing.
    """
    if backend == "local" and count == 1:
        return InProcess(worker)
    try:
        pickled = pickle.dumps(worker)
    except Exception as error:
        raise UsageError(
            f"what plays cannot be sent to another process ({error}): with workers, agents and judges are functions at "
            "the top of a module, or are given by name, such as import:MODULE:NAME"
        ) from error
    remote: Callable[[Sent], RemoteWorker]
    if backend == "ray":
        from fate_gym.evaluation.ray_workers import RayWorker

        remote = functools.partial(RayWorker, on_gpu=on_gpu)
    else:
        from fate_gym.evaluation.processes import ProcessWorker

        remote = ProcessWorker
    return WorkerPool(lambda share: remote(Sent(pickled, share, imported_plugins())), count)
