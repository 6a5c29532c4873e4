"""How a training reports its progress. The base class reports nothing; the command line draws bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from fate_gym.rewards import AXES


class ProgressReporter:
    """Receives the progress of a training, stage by stage."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins.

        Args:
            stage: Its name.
            total: Its units of work: episodes or steps; 0 if unknown.
            done: Units that were done before an interruption.
        """

    def advance(self, note: str = "") -> None:
        """One unit is done; the note holds means so far."""

    def end(self) -> None:
        """The stage is over."""

    def say(self, line: str) -> None:
        """Reports a result in one line."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Begins a stage, and ends it whatever happens."""
        self.begin(name, total, done)
        try:
            yield
        finally:
            self.end()


class RunningMeans:
    """Means of each axis over the episodes so far in which it is active; `str` makes them a short line."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(AXES)
        self._counts = [0] * len(AXES)

    def add(self, vector: Sequence[float], mask: Sequence[bool]) -> None:
        """Adds one episode."""
        for axis, (value, active) in enumerate(zip(vector, mask, strict=True)):
            if active:
                self._sums[axis] += value
                self._counts[axis] += 1

    def __str__(self) -> str:
        return axes_line({axis: total / n for axis, total, n in zip(AXES, self._sums, self._counts, strict=True) if n})


_SHORT: Final = dict(zip(AXES, ("sec", "util", "ref", "val"), strict=True))


def axes_line(values: Mapping[str, float | None]) -> str:
    """Returns axis values as one short line, such as "sec .72 util .61 ref .98 val 1.00"."""
    numbers = {_SHORT[axis]: f"{value:.2f}" for axis, value in values.items() if value is not None}
    return " ".join(f"{name} {number.removeprefix('0')}" for name, number in numbers.items())
