"""When a request to a model server is made again, and how fast requests follow each other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fate_gym.errors import NoReplyError, ProviderError
from fate_gym.serving._failures import LONGEST_ASKED_WAIT, TransientError
from fate_gym.share import own_share

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a request is made again.

    Attributes:
        max_attempts: Requests for one reply, the first included.
        backoff_seconds: Bound of the first wait; each further one doubles it. The wait is uniform below its bound
            ("full jitter"), so that sessions that failed together do not come back together.
        longest_seconds: Bound of a wait for which the server did not ask.
    """

    max_attempts: int
    backoff_seconds: float = 1.0
    longest_seconds: float = 60.0

    async def run(self, request: Callable[[A], Awaitable[T]], argument: A) -> tuple[T, int]:
        """Makes a request until it succeeds; returns its result and the number of requests made.

        Args:
            request: A coroutine function.
            argument: What it is called with, each time.

        Raises:
            ProviderError: It failed for good, or too often; with the number of requests.
            NoReplyError: From the request; with the number of requests as well.
        """
        attempt = 1
        while True:
            try:
                return await request(argument), attempt
            except TransientError as failure:
                if attempt >= self.max_attempts:
                    raise ProviderError(f"gave up after {attempt} attempts: {failure}", attempts=attempt) from None
                pause = self.wait(attempt, failure.retry_after)
            except NoReplyError as failure:
                failure.attempts = attempt
                raise
            await asyncio.sleep(pause)
            attempt += 1

    def wait(self, attempt: int, asked: float | None) -> float:
        """Returns the seconds to wait after a failed attempt.

        Args:
            attempt: Its number, from 1.
            asked: Seconds that the server asked to wait, which are the least, up to `LONGEST_ASKED_WAIT`.
        """
        bound = self.backoff_seconds * 2 ** (attempt - 1 if asked is None else 0)
        jitter = random.uniform(0, min(bound, self.longest_seconds))  # noqa: S311 (spreads load, guards nothing)
        return min(asked or 0.0, LONGEST_ASKED_WAIT) + jitter


class Pacer:
    """Spaces requests evenly, over all sessions. Processes that share a run take turns, so that its limit holds.

    Args:
        per_minute: Requests a minute of the whole run, or None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        share, gap = own_share(), 60 / per_minute if per_minute else 0.0
        self._gap = gap * share.of
        self._next = time.monotonic() + gap * share.index

    async def turn(self) -> None:
        """Waits for the next free slot."""
        if not self._gap:
            return
        now = time.monotonic()
        slot = max(now, self._next)
        self._next = slot + self._gap
        await asyncio.sleep(slot - now)
