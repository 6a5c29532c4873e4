"""The one way to the user's terminal. Everything that is printed passes through here and is made visible first.

Names, errors and conversations come from models, servers and other people's files. No command writes to `sys.stdout` or
`sys.stderr` itself (a test holds that); it calls `out` or `err`, which name control characters, never read markup in a
text, and turn a stream that takes nothing more into one error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import IO, Any, Final, Literal, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fate_gym.errors import FateGymError
from fate_gym.rendering import visible, visible_line

_LONGEST_LINE: Final = 20_000
"""Characters of a line that are printed: one line of megabytes would bury the rest."""

_UNLIMITED: Final = 100_000
"""Columns where nobody's window sets a limit: a pipe or a file."""

_NARROWEST_TEXT: Final = 40
"""Columns below which a text stands under its name, not beside it."""


class OutputError(FateGymError):
    """Standard output cannot be written.

    Args:
        error: What the system said.
    """

    def __init__(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        super().__init__(f"cannot write to standard output: {reason}")
        self.reader_gone = isinstance(error, BrokenPipeError)


class Terminal:
    """Standard output or standard error.

    Args:
        name: Which of the two. It is looked up in `sys` at each use, since tests and notebooks exchange it.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._stream = _Stream(name)

    @property
    def width(self) -> int:
        """Columns of the window; very many where a pipe or a file takes what is printed."""
        return self._console().width

    def line(self, text: str) -> None:
        """Prints one line, whatever line feeds the text holds."""
        self.text(visible_line(text))

    def text(self, text: str) -> None:
        """Prints a text of several lines; the terminal itself wraps what is too long for it."""
        self._stream.write_above_bars("\n".join(map(_cut, visible(text).split("\n"))) + "\n")
        self._stream.flush()

    def prose(self, text: str, *, start: str = "") -> None:
        """Prints sentences, broken between words where a window is narrow.

        Args:
            text: The sentences.
            start: Stands before each line, such as an indent.
        """
        self.text("\n".join(start + line for line in self._broken(text, self.width - len(start))))

    def entries(self, entries: Iterable[tuple[str, str]]) -> None:
        """Prints names, each with its text beside it, or below it where a window is narrow."""
        listed = [(visible_line(name), visible_line(text)) for name, text in entries]
        column = max((len(name) for name, _ in listed), default=0) + 2
        beside = self.width - column >= _NARROWEST_TEXT
        for name, text in listed:
            if beside:
                first, *rest = self._broken(text, self.width - column)
                self.text("\n".join([f"{name:<{column}}{first}".rstrip(), *(" " * column + line for line in rest)]))
            else:
                self.text(name)
                self.prose(text, start="    ")

    def json(self, value: object, *, indent: int | None = 2, sort_keys: bool = False) -> None:
        """Prints JSON, whole."""
        # ASCII alone: JSON names every other character itself.
        self._stream.write(json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")
        self._stream.flush()

    def table(self, table: Table) -> None:
        """Prints a table; where the window is too narrow for it, a row becomes a block of lines, and nothing is cut."""
        console = self._console()
        natural = console.measure(table, options=console.options.update(width=_UNLIMITED)).maximum
        if natural <= console.width:
            console.print(table)
        else:
            self.text(_stacked(table))

    def status(self, text: str) -> AbstractContextManager[Any]:
        """Shows that something takes its time; nothing where no one watches."""
        return self._console().status(Text(visible_line(text)))

    def progress(self, *columns: str | ProgressColumn) -> Progress:
        """Returns progress bars; a column given as a string is a format of the task, such as "{task.description}"."""
        made = (TextColumn(column, markup=False) if isinstance(column, str) else column for column in columns)
        return Progress(*made, console=self._console())

    def _broken(self, text: str, width: int) -> list[str]:
        return [line.plain.rstrip() for line in Text(visible(text)).wrap(self._console(), max(width, 1))]

    def _console(self) -> Console:
        return _VisibleConsole(self._stream)


class _Stream:
    """A standard stream as it stands in `sys` now; it alone writes."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    def write(self, text: str) -> int:
        try:
            return self._open().write(text)
        except (OSError, ValueError) as error:
            self._failed(error)
        return len(text)

    def write_above_bars(self, text: str) -> None:
        """Writes through what rich has put in front of the stream while bars are drawn, if it has."""
        front = getattr(sys, self._name)
        if hasattr(front, "rich_proxied_file"):
            front.write(text)
        else:
            self.write(text)

    def flush(self) -> None:
        try:
            self._open().flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        stream = self._now()
        return stream is not None and not stream.closed and stream.isatty()

    def fileno(self) -> int:
        return self._open().fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._now(), "encoding", None) or "utf-8"

    def _now(self) -> TextIO | None:
        stream = getattr(sys, self._name)
        # While bars are drawn, rich stands in front of the stream and hands what it gets back to this console.
        return cast("TextIO | None", getattr(stream, "rich_proxied_file", stream))

    def _open(self) -> TextIO:
        stream = self._now()
        if stream is None:
            # Python's way to say that the descriptor was closed when the program began.
            raise OSError(errno.EBADF, "it is closed")
        return stream

    def _failed(self, error: Exception) -> None:
        # What is still in buffers goes nowhere: Python would complain of it once more when it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        # Where standard error takes nothing there is nobody left to tell, and the work itself goes on.
        if self._name == "stdout":
            raise OutputError(error) from error


class _VisibleConsole(Console):
    """Rich's console, which reads no markup, and shows every character of a text."""

    def __init__(self, stream: _Stream) -> None:
        limited = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
        width = None if limited else _UNLIMITED
        super().__init__(file=cast("IO[str]", stream), width=width, markup=False, highlight=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        # Before the layout, which must count the characters that are shown.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None:
                # After the layout, for texts that were no strings; for all others there is nothing left to name.
                segment = Segment(visible(segment.text), segment.style)
            yield segment


def _cut(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[:_LONGEST_LINE]} ... ({len(line) - _LONGEST_LINE} more characters)"


def _stacked(table: Table) -> str:
    """Lays out a table's rows one below the other: the first cell as a heading, the others as lines "title  value"."""
    titles = [_plain(column.header) for column in table.columns]
    width = max(map(len, titles[1:]), default=0)
    lines = [_plain(table.title)] if table.title else []
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        lines += ["", _plain(name)]
        lines += [f"  {title:<{width}}  {_plain(cell)}" for title, cell in zip(titles[1:], cells, strict=True)]
    return "\n".join([*lines, ""])


def _plain(cell: RenderableType) -> str:
    """Returns a cell's text on one line."""
    return "  ".join(str(cell).split("\n"))


out: Final = Terminal("stdout")
"""Results."""

err: Final = Terminal("stderr")
"""Progress, remarks and errors."""


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning as one line, without the place in the source that Python would add."""
    err.line(f"warning: {message}")
