"""The time that a request may take, counted while this process runs."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

_LOOKS: Final = 32
"""How often in its time a request's clock is looked at."""


class Patience:
    """Ends the work inside of it after some time, with `TimeoutError`; an async context manager.

    On a machine under load, the event loop may not run for longer than a whole timeout. What came meanwhile waits to be
    read, and would be thrown away: a good answer would count as a failure of its server, or as one that the model does
    not end. So of each pause between two looks at the clock only the usual length counts.

    Args:
        seconds: The time.

    Attributes:
        spent: Seconds that are over.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pause = seconds / _LOOKS
        self._timeout = asyncio.timeout(None)
        self.spent = 0.0

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._next = self._loop.call_later(self._pause, self._look)

    def _look(self) -> None:
        self.spent += self._pause
        if self.spent < self._seconds:
            self._wait()
        else:
            self._timeout.reschedule(self._loop.time())
