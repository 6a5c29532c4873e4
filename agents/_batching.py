"""Many waiting requests, one batch: the micro-batcher.

On a GPU put a model behind vLLM and use `openai:` for real speed: there it batches continuously.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeAlias, TypeVar

from fate_gym.errors import ContextOverflowError, ProviderError

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

_Job: TypeAlias = tuple[_Request, "Future[_Result]"]


class MicroBatcher(Generic[_Request, _Result]):
    """Runs the requests that wait together, in a thread of its own, so that no event loop is blocked.

    A batch starts when it is full, or when no request has come for `delay`: episodes that were answered together
    come back together, a few milliseconds apart. What comes later may join it. A batch that does not fit in memory is
    halved, and so is the next one's size, which then grows by one with every batch that fits.

    Args:
        run: Answers a batch, in the thread: gets its requests, and yields the place of each with its result, as it
            ends. Its second argument returns further requests that have come, whose places follow, as far as there is
            room for them in the batch.
        max_batch: Most requests in one batch.
        too_large: What `run` raises where a batch does not fit in memory.
        delay: Seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[_Request], Callable[[], Sequence[_Request]]], Iterable[tuple[int, _Result]]],
        *,
        max_batch: int,
        too_large: type[Exception],
        delay: float = 0.01,
    ) -> None:
        self._run = run
        self._max_batch = self._limit = max_batch
        self._too_large = too_large
        self._delay = delay
        self._waiting: deque[_Job[_Request, _Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fate-gym-batcher", daemon=True)
        self._thread.start()

    async def submit(self, request: _Request) -> _Result:
        """Waits for the request's result.

        Raises:
            ContextOverflowError: The request does not fit in memory even alone.
            ProviderError: The batcher is closed.
            Exception: Whatever `run` raised.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._closed:
                raise ProviderError("the agent is closed")
            self._waiting.append((request, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets the running batch finish, turns away what waits and stops the thread."""
        with self._changed:
            self._closed = True
            while self._waiting:
                _, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(ProviderError("the agent is closed"))
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._gather()) is not None:
            if jobs:
                self._serve(jobs)

    def _gather(self) -> list[_Job[_Request, _Result]] | None:
        """Waits for a batch; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while len(self._waiting) < self._limit and not self._closed:
                if not self._changed.wait(self._delay):
                    break
            if self._closed:
                return None
            return self._take(self._limit)

    def _take(self, most: int) -> list[_Job[_Request, _Result]]:
        """Takes what waits, under the lock."""
        jobs = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        # A job whose caller has gone is dropped; from here on the others cannot be cancelled.
        return [job for job in jobs if job[1].set_running_or_notify_cancel()]

    def _serve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        under_way = dict(enumerate(jobs))
        places = itertools.count(len(jobs))

        def join() -> list[_Request]:
            with self._changed:
                new = self._take(self._limit - len(under_way))
            under_way.update({next(places): job for job in new})
            return [request for request, _ in new]

        fits = True
        try:
            for place, result in self._run([request for request, _ in jobs], join):
                under_way.pop(place)[1].set_result(result)
        except self._too_large:
            fits = False
        except Exception as error:
            for _, future in under_way.values():
                future.set_exception(error)
            return
        # Only here, past the handler, is the traceback gone and with it the memory that the batch had taken.
        if not fits:
            self._halve(list(under_way.values()))
            return
        self._limit = min(self._max_batch, self._limit + 1)

    def _halve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        if len(jobs) == 1:
            jobs[0][1].set_exception(ContextOverflowError("the prompt does not fit in memory, even alone"))
            return
        self._limit = half = len(jobs) // 2
        self._serve(jobs[:half])
        self._serve(jobs[half:])
