"""Workers in processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Final

from fate_gym import loops
from fate_gym.errors import FateGymError
from fate_gym.evaluation.hosting import Answer, DiedError, Host, Sent

_LONGEST_END: Final = 10.0
"""Seconds that a worker may take to close itself."""

_MANY: Final = 32
_PATIENCE: Final = 0.01
"""Seconds that an answer waits for others where so many pieces are under way: a worker has enough to do meanwhile."""

_LENGTH: Final = 8
"""Bytes that say how long an object is."""

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
        self._sent = sent
        self._process: BaseProcess | None = None
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._death: str | None = None

    async def start(self) -> Answer:
        """Starts the process, and returns when the worker is made."""
        ours, theirs = socket.socketpair()
        self._channel = await _Channel.over(ours)
        # Closed here once it is there: the channel ends with the process only if nobody else holds its other end.
        with theirs, _signals_blocked():
            # Not forked: this process has threads, whose locks a child would inherit locked.
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_serve, args=(theirs, self._sent), daemon=True)
            process.start()
        self._process = process
        # Where this process ends without closing the pool: multiprocessing's own SIGTERM is blocked there.
        multiprocessing.util.Finalize(process, process.kill, exitpriority=1)
        self._listening = asyncio.create_task(self._listen(process))
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
            await self._listening

    def end(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()

    async def _call(self, method: str, *arguments: object) -> Answer:
        if self._death is not None:
            raise DiedError(self._death)
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._channel.send((number, method, arguments))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _listen(self, process: BaseProcess) -> None:
        """Passes on what comes from the process, until it has ended."""
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    number, answer = await self._channel.receive()
                    future = self._waiting.get(number)
                    if future is not None and not future.done():
                        future.set_result(answer)
            await asyncio.to_thread(process.join)
        finally:
            self._channel.close()
        code = process.exitcode or 0
        self._death = _ENDINGS.get(code, f"exit code {code}" if code >= 0 else signal.Signals(-code).name)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DiedError(self._death))


class _Channel:
    """Objects to and from another process, by `pickle`.

    Read on the event loop: a thread that reads would fight with the loop over Python's lock, for each object.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: list[bytes] = []
        self._since = 0.0

    @classmethod
    async def over(cls, end: socket.socket) -> _Channel:
        """Makes one of an end of a pair of sockets."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, thing: object, within: float = 0.0) -> None:
        """Sends an object; one that is sent to a process that is gone is lost.

        What is sent at one time goes out together: to wake the other process costs more than an object does.

        Args:
            thing: The object.
            within: Seconds that it may wait for others.
        """
        data = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
        if not self._waiting:
            self._since = time.monotonic()
            asyncio.get_running_loop().call_later(within, self._send_waiting)
        self._waiting += (len(data).to_bytes(_LENGTH, "big"), data)
        # Timers do not run while an agent computes on the loop.
        if time.monotonic() - self._since > max(within, _PATIENCE):
            self._send_waiting()

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        # uvloop raises where this end has been closed by an earlier failure to write.
        if waiting and not self._writer.is_closing():
            self._writer.write(b"".join(waiting))

    async def receive(self) -> Any:
        """Waits for the next object.

        Raises:
            EOFError, OSError: The other process is gone.
        """
        length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
        return pickle.loads(await self._reader.readexactly(length))  # noqa: S301 (from our own process)

    def close(self) -> None:
        """Closes this end."""
        self._writer.close()

    async def aclose(self) -> None:
        """Closes this end when all that was sent is on its way."""
        self._send_waiting()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


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


def _serve(end: socket.socket, sent: Sent) -> None:
    """What the process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    # Each of the processes would otherwise compute on every processor.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sent.share.of)))
    loops.run(_answer(end, Host(sent)))


def _end_with_caller() -> None:
    """Ends this process when the caller ends, also while the event loop computes for long."""
    if (caller := multiprocessing.parent_process()) is not None:
        caller.join()
        _exit()


async def _answer(end: socket.socket, host: Host) -> None:
    """Answers calls, many at once, until the host is closed or the caller is gone."""
    channel = await _Channel.over(end)
    under_way: set[asyncio.Task[None]] = set()

    async def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        within = _PATIENCE if len(under_way) >= _MANY else 0.0
        answer: Answer = await getattr(host, method)(*arguments)
        try:
            channel.send((number, answer), within)
        except Exception as error:
            # Without an answer the caller would wait for ever.
            lost = FateGymError(f"what a worker did cannot be sent to the command: {type(error).__name__}: {error}")
            channel.send((number, Answer(None, lost, ())), within)
        if method == "aclose":
            await channel.aclose()
            _exit()

    with contextlib.suppress(EOFError, OSError):
        while True:
            task = asyncio.create_task(answer(*await channel.receive()))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    _exit()


def _exit() -> None:
    """Ends the process; threads that never end keep it from doing so in any other way."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)
