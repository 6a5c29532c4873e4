"""Logs: files of one JSON object a line to which whole lines are appended, and how they are read."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from fate_gym.errors import DiskError, RunCorruptError
from fate_gym.storage._atomic import disk_errors, sync_folder
from fate_gym.storage._json import NotOursError, parse
from fate_gym.storage._reading import open_file

MAX_LINE: Final = 64 * 2**20
"""Most bytes of a line, written or read; a stranger's file may be one endless line."""


_LOOKS: Final = 20
_PAUSE: Final = 0.05
"""How often, and with which seconds between, a log that is not there is looked for: editors that save a file move the
old one away before they write the new one."""

_PIECE: Final = 2**20
"""Bytes that are read, compared or copied at a time."""


class AppendLog:
    """A file of lines that holds whole lines only, after every append that succeeds and every one that fails.

    Another program may put a copy of the file in its place, as editors do when they save: the log then goes on in the
    copy, and adds what came meanwhile. A file with anything else in it is not touched.

    Args:
        path: The file; made if missing. A last line that a kill left unfinished is cut off, lest the next record be
            glued to it and both be lost.

    Raises:
        DiskError: It cannot be opened or repaired.
        RunError: It is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            new = not path.exists()
            if not new:
                _cut_torn_tail(path)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
            if new:
                sync_folder(path.parent)
            self._size = os.fstat(self._fd).st_size
        self._whole = True

    def append(self, *lines: bytes) -> None:
        """Adds lines, and fsyncs once; a failed write is undone.

        Raises:
            ValueError: A line is longer than readers accept.
            DiskError: The disk refused, or the file was removed or changed: what is written would be lost.
            RunCorruptError: An earlier failure could not be undone.
        """
        if (longest := max(map(len, lines), default=0)) > MAX_LINE:
            raise ValueError(f"{self._path}: a record of {longest} bytes is longer than {MAX_LINE}")
        if not self._whole:
            raise RunCorruptError(f"{self._path}: a failed write could not be undone; run again to repair and resume")
        self.check()
        data = b"".join(lines)
        with disk_errors(self._path):
            self._whole = False
            try:
                _write_all(self._fd, data)
                os.fsync(self._fd)
            except BaseException:
                os.ftruncate(self._fd, self._size)
                self._whole = True
                raise
            self._size += len(data)
            self._whole = True

    def check(self) -> None:
        """Makes sure that the file is still what was written.

        Raises:
            DiskError: It was removed, or holds something else.
        """
        with disk_errors(self._path):
            for look in range(_LOOKS):
                try:
                    if not os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                        self._go_on_in_copy()
                    break
                except FileNotFoundError:
                    if look == _LOOKS - 1 or not self._path.parent.exists():
                        raise
                    time.sleep(_PAUSE)
        if self._whole and os.fstat(self._fd).st_size != self._size:
            raise DiskError(f"{self._path} was changed by another program while it was written")

    def _go_on_in_copy(self) -> None:
        """Goes on in the file that has taken this one's place, which holds the same or the beginning of it."""
        copy = os.open(self._path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            found = os.fstat(copy)
            size, pieces = found.st_size, range(0, found.st_size, _PIECE)
            if not stat.S_ISREG(found.st_mode) or not all(
                _read(copy, at, size) == _read(self._fd, at, size) for at in pieces
            ):
                raise DiskError(f"{self._path} was replaced by another file while it was written")
            for at in range(size, self._size, _PIECE):
                _write_all(copy, _read(self._fd, at, self._size))
            os.fsync(copy)
        except BaseException:
            os.close(copy)
            raise
        os.close(self._fd)
        self._fd = copy
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class Place(NamedTuple):
    """Where a line of a log stands."""

    line: int
    """Its number, from 1."""
    start: int
    """The byte at which it begins."""
    end: int
    """The byte after it."""


BEGINNING: Final = Place(0, 0, 0)
"""Before the first line."""


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, record); see `placed_records`."""
    return ((place.line, record) for place, record in placed_records(path))


def placed_records(path: Path, after: Place = BEGINNING) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields each record and where it stands; an unfinished last line is in flight or was, and is passed over.

    Args:
        path: The file; one that is missing has no records.
        after: Only records after this one.

    Raises:
        RunCorruptError: A line before the last is not a JSON object, the last one cannot be what a crash left, or the
            path is not a regular file.
    """
    if not path.exists():
        return
    damaged: ValueError | None = None
    number, start = after.line, after.end
    for number, line in lines(path, after):
        if damaged is not None:
            raise corrupt(path, number - 1, "is not a JSON object") from damaged
        place = Place(number, start, start + len(line))
        start = place.end
        try:
            record = parse(line)
        except ValueError as error:
            damaged = error
        else:
            yield place, record
    if isinstance(damaged, NotOursError):
        raise corrupt(path, number, f"is not a record ({damaged})") from damaged


def lines(path: Path, after: Place = BEGINNING) -> Iterator[tuple[int, bytes]]:
    """Yields (line number, line with its end), of a line that is too long its beginning alone.

    Args:
        path: The file.
        after: Only lines after this one.

    Raises:
        RunError: The path is not a regular file, or cannot be read.
    """
    with open_file(path, _PIECE) as file:
        file.seek(after.end)
        yield from enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=after.line + 1)


def corrupt(path: Path, number: int, what: str) -> RunCorruptError:
    """Makes the error for a line that is not what was written."""
    return RunCorruptError(
        f"{path}, line {number} {what}: the file was changed or damaged after it was written. "
        "Restore it, or delete that line and resume, which runs its episode again"
    )


def _read(fd: int, at: int, end: int) -> bytes:
    """Reads a piece of a file from a place on, up to an end."""
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, min(_PIECE, end - at))


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _cut_torn_tail(path: Path) -> None:
    with open_file(path) as file:
        start = _last_line(file)
        file.seek(start)
        line = file.readline(MAX_LINE)
    try:
        if line:
            parse(line)
    except NotOursError:
        return  # Not what a kill left: it stays for the reader, which refuses it by its line.
    except ValueError:
        os.truncate(path, start)


def _last_line(file: BinaryIO) -> int:
    """Returns the byte at which the last line begins, looked for from the end: the file may be of any size."""
    # The last byte is the end of that line, or a part of it.
    end = max(0, file.seek(0, os.SEEK_END) - 1)
    while end:
        start = max(0, end - _PIECE)
        file.seek(start)
        before = file.read(end - start).rfind(b"\n")
        if before >= 0:
            return start + before + 1
        end = start
    return 0
