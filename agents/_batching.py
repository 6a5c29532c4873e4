"""Many waiting requests, one batch: the micro-batcher.

For real speed put a model behind vLLM and use `openai:`: it batches continuously.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeAlias, TypeVar

from fate_gym.errors import ContextOverflowError, ProviderError

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

_Job: TypeAlias = tuple[_Request, "Future[_Result]"]


class MicroBatcher(Generic[_Request, _Result]):
    """Runs the requests that wait together, in a thread of its own, so that no event loop is blocked.

    A batch starts when it is full, or when no request has come for `delay`: episodes that were answered together
    come back together, a few milliseconds apart. A batch that does not fit in memory is halved, and so is the next
    one's size, which then grows by one with every batch that fits.

    Args:
        run: Answers a batch, in order; called from the thread.
        max_batch: Most requests in one batch.
        too_large: What `run` raises where a batch does not fit in memory.
        delay: Seconds.
    """

    def __init__(
        self,
        run: Callable[[list[_Request]], Sequence[_Result]],
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
            # A job whose caller has gone is dropped; from here on the others cannot be cancelled.
            if running := [job for job in jobs if job[1].set_running_or_notify_cancel()]:
                self._serve(running)

    def _gather(self) -> list[_Job[_Request, _Result]] | None:
        """Waits for a batch; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while len(self._waiting) < self._limit and not self._closed:
                if not self._changed.wait(self._delay):
                    break
            if self._closed:
                return None
            return [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]

    def _serve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        fits = True
        try:
            results = self._run([request for request, _ in jobs])
        except self._too_large:
            fits = False
        except Exception as error:
            for _, future in jobs:
                future.set_exception(error)
            return
        # Only here, past the handler, is the traceback gone and with it the memory that the batch had taken.
        if not fits:
            self._halve(jobs)
            return
        self._limit = min(self._max_batch, self._limit + 1)
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)

    def _halve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        if len(jobs) == 1:
            jobs[0][1].set_exception(ContextOverflowError("the prompt does not fit in memory, even alone"))
            return
        self._limit = half = len(jobs) // 2
        self._serve(jobs[:half])
        self._serve(jobs[half:])
