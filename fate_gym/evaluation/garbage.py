"""Garbage: how seldom Python looks for what is unreachable and refers to itself. Episodes leave none of it behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_OBJECTS: Final = 50_000
"""New objects after which Python looks: more than the episodes under way usually make and still need."""

_evaluations = 0
_usual = gc.get_threshold()


def look_seldom() -> None:
    """Has Python look seldom, and never again through what is there now: modules and benchmarks.

    To look through those takes a tenth of a second, in which no episode goes on: a seventh of an evaluation's time. To
    look through new objects as often as Python does by itself takes another fourteenth.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])


@contextmanager
def looking_seldom() -> Iterator[None]:
    """The same while episodes are played; of several evaluations at once, until the last of them ends."""
    global _evaluations, _usual
    if not _evaluations:
        _usual = gc.get_threshold()
    _evaluations += 1
    look_seldom()
    try:
        yield
    finally:
        _evaluations -= 1
        if not _evaluations:
            gc.set_threshold(*_usual)
            gc.unfreeze()
