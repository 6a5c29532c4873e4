"""Work spread over processes, with the caller as the only one who writes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD: Final = 2
"""Pieces under way for each process: one that it works on, and one that waits, so that memory stays flat."""


def spread(work: Callable[[T], R], pieces: Iterable[T], workers: int) -> Iterator[R]:
    """Yields what comes of each piece, in the order in which they are done.

    Args:
        work: Does one piece; each process gets one copy of it and keeps it, so that it may hold what is slow to make.
        pieces: What to do; read as it goes.
        workers: Processes. With 1 everything is done here, in the order of the pieces.

    Raises:
        Exception: What `work` raised for some piece.
    """
    if workers == 1:
        yield from map(work, pieces)
        return
    # Not forked: this process may have threads, whose locks a child would inherit locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(work,))
    waiting = iter(pieces)
    try:
        under_way: set[Future[R]] = {pool.submit(_do, piece) for piece in islice(waiting, workers * _AHEAD)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            under_way |= {pool.submit(_do, piece) for piece in islice(waiting, len(done))}
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # Ctrl-C goes to the whole group of processes; the caller's decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do(piece: Any) -> Any:
    return _work(piece)
