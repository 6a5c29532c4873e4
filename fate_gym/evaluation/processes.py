"""Workers in processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final

from fate_gym import loops
from fate_gym.evaluation.hosting import Answer, DiedError, Host, Sent

_LONGEST_END: Final = 10.0
"""Seconds that a worker may take to close itself."""

_ENDINGS: Final = {
    -signal.SIGKILL: "killed, as the system does where memory runs out",
    1: "exit code 1; a script that asks for workers needs `if __name__ == '__main__':` around what it does",
}


class ProcessWorker:
    """A worker in a process of this machine. It ends with this process, however this one ends.

    Args:
        sent: What the worker is made of.
    """

    def __init__(self, sent: Sent) -> None:
        # Not forked: this process has threads, whose locks a child would inherit locked.
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._theirs, sent), daemon=True)
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._death: str | None = None

    async def start(self) -> Answer:
        """Starts the process, and returns when the worker is made."""
        with _signals_blocked():
            self._process.start()
        # Where this process ends without closing the pool: multiprocessing's own SIGTERM is blocked there.
        multiprocessing.util.Finalize(self._process, self._process.kill, exitpriority=1)
        # The pipe ends with the process only if nobody else holds its other end.
        self._theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(asyncio.get_running_loop(),), daemon=True)
        self._listener.start()
        return await self._call("start")

    async def do(self, work: Callable[..., Any], piece: object) -> Answer:
        """Has the worker do a piece of work."""
        return await self._call("do", work, piece)

    async def aclose(self) -> Answer:
        """Has the worker close itself, and ends the process."""
        try:
            async with asyncio.timeout(_LONGEST_END):
                return await self._call("aclose")
        except TimeoutError:
            raise DiedError("it did not close itself in time") from None
        finally:
            self.end()
            await asyncio.to_thread(self._listener.join)

    def end(self) -> None:
        """Ends the process at once."""
        if self._process.pid is not None:
            self._process.kill()

    async def _call(self, method: str, *arguments: object) -> Answer:
        if self._death is not None:
            raise DiedError(self._death)
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            # A process that is gone is heard of by the listener.
            with contextlib.suppress(OSError):
                self._connection.send((number, method, arguments))
            return await answer
        finally:
            self._waiting.pop(number, None)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Passes on what comes from the process, in a thread."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, answer = self._connection.recv()
                loop.call_soon_threadsafe(self._settle, number, answer)
        self._process.join()
        self._connection.close()
        with contextlib.suppress(RuntimeError):  # The loop may be closed: then nobody waits.
            loop.call_soon_threadsafe(self._mourn)

    def _settle(self, number: int, answer: Answer) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def _mourn(self) -> None:
        code = self._process.exitcode or 0
        self._death = _ENDINGS.get(code, f"exit code {code}" if code >= 0 else signal.Signals(-code).name)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DiedError(self._death))


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Has processes that start here never hear of Ctrl-C and SIGTERM, which go to all of a group: the caller decides.

    They inherit what this thread blocks, from their first moment on.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process would start it, and with that unblock both signals again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, sent: Sent) -> None:
    """What the process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Each of the processes would otherwise compute on every processor.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sent.share.of)))
    loops.run(_answer(connection, Host(sent)))


async def _answer(connection: Connection, host: Host) -> None:
    """Answers calls, many at once, until the host is closed or the caller is gone."""
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    async def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        connection.send((number, await getattr(host, method)(*arguments)))
        if method == "aclose":
            _exit()

    def begin(call: tuple[int, str, tuple[Any, ...]]) -> None:
        task = loop.create_task(answer(*call))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    def listen() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(begin, connection.recv())
        except (EOFError, OSError):
            _exit()

    threading.Thread(target=listen, daemon=True).start()
    await asyncio.Event().wait()


def _exit() -> None:
    """Ends the process; threads that never end keep it from doing so in any other way."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)
