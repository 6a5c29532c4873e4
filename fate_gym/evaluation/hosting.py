"""What stands around a worker in a process of its own, on this machine or another, and what passes to and fro."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fate_gym.errors import FateGymError, UsageError
from fate_gym.evaluation.garbage import look_seldom
from fate_gym.plugins import import_plugin
from fate_gym.share import Share, take_share


@dataclass(frozen=True, slots=True)
class Sent:
    """What a process makes its worker of.

    Attributes:
        worker: The pickled worker.
        share: Its share of the work.
        plugins: Modules that the user named, which may register environments and attacks when they are imported.
    """

    worker: bytes
    share: Share
    plugins: tuple[str, ...]


class Answer(NamedTuple):
    """What comes back from a worker.

    Attributes:
        result: What its method returned.
        error: What it raised, None if nothing.
        logged: What was logged in its process since the last answer.
    """

    result: Any
    error: Exception | None
    logged: tuple[logging.LogRecord, ...]


class DiedError(Exception):
    """The process of a worker has ended; the message says how."""


class RemoteWorker(Protocol):
    """A worker in a process of its own, here or on another machine."""

    async def start(self) -> Answer:
        """Starts the process, and returns when the worker is made.

        Raises:
            DiedError: The process ended first.
        """
        ...

    async def do(self, work: Callable[..., Any], piece: object) -> Answer:
        """Has the worker do a piece of work.

        Raises:
            DiedError: The process ended first.
        """
        ...

    async def aclose(self) -> Answer:
        """Has the worker close itself, and ends the process.

        Raises:
            DiedError: The process ended first.
        """
        ...

    def end(self) -> None:
        """Ends the process at once, whether it has begun or ended already."""
        ...


class Host:
    """Makes a worker of what was sent, has it do what comes, and keeps what is logged meanwhile.

    Args:
        sent: What the worker is made of.
    """

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._worker: Any = None
        self._log = _Kept()
        logging.getLogger().addHandler(self._log)
        logging.captureWarnings(True)

    async def start(self) -> Answer:
        """Makes the worker."""
        try:
            self._make()
        except Exception as error:
            return self._answer(error=error)
        look_seldom()
        # The caller has made such a worker, too, and has heard what there is to be said of that.
        self._log.take()
        return self._answer()

    async def do(self, work: Callable[[Any, Any], Awaitable[Any]], piece: object) -> Answer:
        """Has the worker do a piece of work."""
        try:
            return self._answer(await work(self._worker, piece))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Whoever asked would wait for ever.
            return self._answer(error=error)

    async def aclose(self) -> Answer:
        """Closes the worker."""
        try:
            return self._answer(await self._worker.aclose())
        except Exception as error:
            return self._answer(error=error)

    def _make(self) -> None:
        take_share(self._sent.share)
        try:
            for name in self._sent.plugins:
                import_plugin(name)
            self._worker = pickle.loads(self._sent.worker)  # noqa: S301 (it comes from the process that started this)
        except FateGymError:
            raise
        except Exception as error:
            raise UsageError(f"a worker process cannot make what plays: {type(error).__name__}: {error}") from error

    def _answer(self, result: object = None, error: BaseException | None = None) -> Answer:
        return Answer(result, None if error is None else _sendable(error), self._log.take())


class _Kept(logging.handlers.QueueHandler):
    """Keeps records in a form that can be sent."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._records: list[logging.LogRecord] = []

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            pickle.dumps(record)
        except Exception:
            # Whatever a log's `extra` holds, what it says can be told.
            kept = ("name", "levelno", "levelname", "msg", "pathname", "lineno", "created")
            record = logging.makeLogRecord({name: getattr(record, name) for name in kept})
        self._records.append(record)

    def take(self) -> tuple[logging.LogRecord, ...]:
        taken, self._records = tuple(self._records), []
        return taken


def _sendable(error: BaseException) -> Exception:
    """Returns the exception itself, or one that says the same: it may not survive being pickled, or end the caller."""
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
            return error
    return FateGymError(f"{type(error).__name__}: {error}")
