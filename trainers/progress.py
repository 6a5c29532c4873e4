"""What a training says while it runs. The base class says nothing; the command line draws bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Is told what goes on, stage by stage."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins.

        Args:
            stage: Its name.
            total: Units of work: episodes, or steps.
            done: Units that an earlier start has done.
        """

    def advance(self, note: str = "") -> None:
        """One unit is done; the note says how it stands."""

    def end(self) -> None:
        """The stage is over."""

    def say(self, line: str) -> None:
        """A result worth a line."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Begins a stage, and ends it whatever happens."""
        self.begin(name, total, done)
        try:
            yield
        finally:
            self.end()
