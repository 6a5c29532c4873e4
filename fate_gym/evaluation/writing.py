"""Writing episodes as they end, while others are played."""

from __future__ import annotations

import asyncio

from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.store import RunFolder


class Writer:
    """Stores episodes. Those that end while the disk is busy are stored together when it is free.

    A disk takes milliseconds until what it was given survives a loss of power, as long for many episodes as for one.
    One after the other, they would end no faster than that, and those that wait would leave no thread to others.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._waiting: list[Finished] = []
        self._next: asyncio.Task[None] | None = None
        self._disk = asyncio.Lock()

    async def store(self, finished: Finished) -> None:
        """Stores an episode; when this returns, it survives a loss of power.

        Raises:
            ValueError, DiskError: As `RunFolder.add`, for it or for one that is stored with it.
        """
        self._waiting.append(finished)
        if self._next is None:
            self._next = asyncio.create_task(self._store_waiting())
        await self._next

    async def _store_waiting(self) -> None:
        async with self._disk:
            together, self._waiting, self._next = self._waiting, [], None
            await asyncio.to_thread(self._folder.add, *together)
