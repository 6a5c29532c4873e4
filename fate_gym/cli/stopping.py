"""Ctrl-C and SIGTERM while a command works: the first unwinds it, another one ends it at once."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeAlias

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Stopped(KeyboardInterrupt):
    """The user (SIGINT) or the system (SIGTERM) asked the command to end.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells report of a program that the signal ended: 130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return "Interrupted." if self.number == signal.SIGINT else "Terminated."


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` where the command is when the first signal arrives.

    A library may turn that exception into another one while it unwinds: whatever leaves the block after a signal is
    `Stopped`. A second signal meets the handler that was there before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        _install(before)
        received.append(number)
        raise Stopped(number)

    _install(dict.fromkeys(SIGNALS, on_signal))
    try:
        yield
    except BaseException as error:
        if received and not isinstance(error, Stopped):
            raise Stopped(received[0]) from error
        raise
    finally:
        _install(before)


@contextmanager
def on_signals(loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]) -> Iterator[None]:
    """Has a running loop call back for every signal, instead of raising somewhere inside it."""
    # Not `loop.add_signal_handler`: when it is removed, it sets the system's own handlers for a moment.
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback, number)

    _install(dict.fromkeys(SIGNALS, on_signal))
    try:
        yield
    finally:
        _install(before)


def _install(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
