"""The lock that keeps a second writer out of a folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

from filelock import FileLock, Timeout

from fate_gym.errors import RunLockedError
from fate_gym.storage._atomic import disk_errors

LOCK_FILE: Final = ".fate-gym.lock"


class WriterLock:
    """The right to write into a folder; the operating system takes it back when the process dies.

    Args:
        folder: The folder, which must exist. The lock's file stays in it.

    Raises:
        RunLockedError: Another writer holds it, in this process or another.
        DiskError: The lock's file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        # Not local to a thread: a run may be closed by another thread than the one that opened it.
        self._lock = FileLock(folder / LOCK_FILE, blocking=False, thread_local=False)
        with disk_errors(folder):
            try:
                self._lock.acquire()
            except Timeout:  # an OSError, too
                raise RunLockedError(
                    f"{folder} is being written by another process: wait for it, or give another --out"
                ) from None

    def release(self) -> None:
        """Lets another writer in."""
        self._lock.release()

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
