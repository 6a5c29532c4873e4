"""Exceptions out of the code that a run plays with: each is shown once, and a run in which nothing works ends early."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Final

from fate_gym.errors import PluginError
from fate_gym.evaluation.finished import Finished
from fate_gym.plugins import place, user_frames
from fate_gym.rendering import visible, visible_line

MOST_ALIKE: Final = 5
"""Failures of one bug after which a run ends, if nothing has been scored."""

_log = logging.getLogger("fate_gym")


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception as it is told where it cannot be: its traceback is lost on the way to another process.

    Attributes:
        place: What failures of one bug have in common (`fate_gym.plugins.place`).
        words: What the exception says of itself.
        trace: Its traceback as visible text: a model may have a part in it, so no log or terminal gets it raw.
    """

    place: str
    words: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Describes an exception."""
        *frames, last = traceback.format_exception(type(error), error, user_frames(error))
        return cls(place(error), str(error), f"{visible(''.join(frames))}{visible_line(last.rstrip())}")


class Faults:
    """What benchmarks, agents and judges raised in a run.

    Whatever fails is counted as an error, and its episode has no score. The run itself ends only while it holds no
    scored episode at all: what a model does may bring an environment to fail, and must not spare it the tasks that are
    left.

    Args:
        stop: Set once the run should end.
        scored: Whether the run holds a scored episode already.
    """

    def __init__(self, stop: asyncio.Event, *, scored: bool) -> None:
        self._stop = stop
        self._scored = scored
        self._alike: Counter[str] = Counter()
        self._fatal: Fault | None = None

    def note(self, fault: Fault) -> None:
        """Shows a fault the first time that it comes from its place, and counts it."""
        self._alike[fault.place] += 1
        if self._alike[fault.place] == 1:
            said = "%s: the episode counts as an error; others of its kind are not shown"
            record = _log.makeRecord(_log.name, logging.ERROR, __file__, 0, said, (fault.place,), None)
            record.exc_text = fault.trace
            _log.handle(record)
        if self._alike[fault.place] >= MOST_ALIKE and not self._scored and self._fatal is None:
            self._fatal = fault
            self._stop.set()

    def ended(self, finished: Finished) -> None:
        """Takes notice of an episode's end."""
        self._scored = self._scored or finished.result.status == "ok"

    def check(self) -> None:
        """Says so where the run was ended; the traceback has been shown.

        Raises:
            PluginError: It was.
        """
        if self._fatal is not None:
            raise PluginError(
                f"the run ended early: its first {self._alike[self._fatal.place]} episodes failed alike "
                f"({self._fatal.place}: {self._fatal.words})"
            )
