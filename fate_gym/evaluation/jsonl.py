"""Files of one JSON object a line that stay whole, whatever kills their writer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError

MAX_DEPTH = 200
"""Deepest nesting of a record: parsers give up somewhere above, depending on version and stack."""


class Log:
    """A file of lines that holds whole lines only, after every append that succeeds and every one that fails."""

    def __init__(self, path: Path) -> None:
        _cut_torn_tail(path)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._whole = True

    def append(self, line: bytes) -> None:
        """Adds one line and fsyncs it; a failed write is undone.

        Raises:
            OSError: The disk refused.
            RunCorruptError: An earlier failure could not be undone.
        """
        if not self._whole:
            raise RunCorruptError(f"{self._path}: a failed write could not be undone; run again to repair and resume")
        end = os.fstat(self._fd).st_size
        self._whole = False
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, end)
            self._whole = True
            raise
        self._whole = True

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _cut_torn_tail(path: Path) -> None:
    """Removes a last line that a kill left unfinished, lest the next record be glued to it and both be lost."""
    if not path.exists():
        return
    start = end = 0
    line = b""
    with path.open("rb") as file:
        for line in file:
            start, end = end, end + len(line)
    try:
        if line:
            parse(line)
    except ValueError:
        os.truncate(path, start)


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, record); an unfinished last line is in flight or was, and is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = parse(line)
            except ValueError as error:
                if not line.endswith(b"\n") or not file.peek(1):
                    return
                raise corrupt(path, number, "is not a JSON object") from error
            yield number, record


def parse(line: bytes) -> dict[str, Any]:
    """Returns the object on a line; ValueError if the line is anything else or lacks its end."""
    if not line.endswith(b"\n"):
        raise ValueError("unfinished")
    try:
        value = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def corrupt(path: Path, number: int, what: str) -> RunCorruptError:
    """Makes the error for a line that is not what was written."""
    return RunCorruptError(
        f"{path}, line {number} {what}: the file was changed or damaged after it was written. "
        "Restore it, or delete that line and resume, which runs its episode again"
    )


# A surrogate in a Python string stands alone, whereas JSON writes other characters as pairs of them.
SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def dump(value: Mapping[str, Json], *, sort_keys: bool = False) -> bytes:
    """Returns JSON in ASCII; lone surrogates, at which strict readers stop, become U+FFFD.

    Keys stay in their order unless sorted: that of an action's arguments is a part of the action.

    Raises:
        ValueError: NaN, an infinity, an integer too long to be read back, or too deep a nesting.
        TypeError: Something that is not JSON.
    """
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    _check_depth(value)
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text).encode("ascii")


def encode_line(value: Mapping[str, Json]) -> bytes:
    """Returns a record as one line; raises as `dump` does."""
    return dump(value) + b"\n"


def _check_depth(value: Json) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _children(node: Json) -> Collection[Json]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()
