"""Reads JSON files that may be damaged, of another version, or written by a stranger. Any problem gives one error.

Every error names the file, the line where there are lines, and the field.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Set
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, TypeGuard, TypeVar

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.storage._json import check_depth, parse

MAX_FILE: Final = 64 * 2**20
"""Most bytes of a file that is read as a whole: a manifest, a summary, settings."""

_KINDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
T = TypeVar("T")

_VERSION: Final = re.compile("[0-9]{1,9}")

_LONGEST_SHOWN: Final = 200


def cut(text: str) -> str:
    """Cuts what an error repeats of a file, which may be a stranger's: one text in it may be as long as the file."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def open_file(path: Path, buffer: int = -1) -> BinaryIO:
    """Opens a regular file for reading.

    A pipe would wait for a writer for ever and a device may never end, and both may stand in a stranger's folder.

    Args:
        path: The file.
        buffer: Bytes that are read at a time; -1 for the system's choice.

    Raises:
        RunError: It is missing, is not a regular file, or cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path.parent} has no {path.name}: is it the folder of a run?") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RunCorruptError(f"{path} is not a regular file: restore it")
    return os.fdopen(fd, "rb", buffer)


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """Returns a file's bytes.

    Args:
        path: The file.
        limit: The most bytes that it may have.

    Raises:
        RunError: It is missing, is not a regular file, cannot be read, or is too large.
    """
    with open_file(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise RunCorruptError(f"{path} has more than {limit} bytes, far more than such a file needs: restore it")
    return content


def read_object(path: Path, schema: str | None = None) -> Fields:
    """Reads a file that holds one JSON object.

    Args:
        path: The file.
        schema: What it must name as its schema, such as "fate-gym/run/1"; lower numbers are older versions, and are
            read as well. None if it names none.

    Raises:
        RunError: It is missing, is not a regular file, cannot be read, or was written by a newer fate-gym.
        RunCorruptError: It is not a JSON object, or not of this schema.
    """
    try:
        fields = Fields(parse(read_file(path).removesuffix(b"\n") + b"\n"), str(path))
        # Of what is nested deeper than any file of ours, nobody has to be able to make anything.
        check_depth(fields.values)
    except ValueError as error:
        raise RunCorruptError(f"{path} is not a JSON object ({error}): restore it") from None
    if schema is not None:
        fields.check_schema(schema)
    return fields


class Fields:
    """A JSON object of a file, whose fields are read with their types.

    Every method raises `RunCorruptError`, with the file, the line and the field, where what it reads is missing or of
    another type; True is not a number, and a number is finite and within what a double holds.

    Args:
        values: The object.
        where: The file, and the line if it has lines; begins every error.
        name: The object's own name in the file, with dots; "" for the whole file or line.

    Attributes:
        values: The object as it is.
    """

    __slots__ = ("_name", "_where", "values")

    def __init__(self, values: dict[str, Json], where: str, name: str = "") -> None:
        self.values = values
        self._where = where
        self._name = name

    @property
    def where(self) -> str:
        """The file, and the line if it has lines."""
        return self._where

    def text(self, name: str) -> str:
        """Reads a string."""
        value = self.values.get(name)
        return value if isinstance(value, str) else self._refuse(name, "must be a string")

    def text_or_none(self, name: str) -> str | None:
        """Reads a string or null."""
        value = self.values.get(name)
        return None if value is None and name in self.values else self.text(name)

    def integer(self, name: str) -> int:
        """Reads an integer of at most 64 bits."""
        value = self.values.get(name)
        if type(value) is not int or not -(2**63) < value < 2**63:
            self._refuse(name, "must be an integer of at most 64 bits")
        return value

    def number(self, name: str) -> float:
        """Reads a finite number; an integer stays one, so that writing it again gives the same bytes."""
        value = self.values.get(name)
        return value if is_finite(value) else self._refuse(name, "must be a finite number")

    def flag(self, name: str) -> bool:
        """Reads true or false."""
        value = self.values.get(name)
        return value if isinstance(value, bool) else self._refuse(name, "must be true or false")

    def choice(self, name: str, options: tuple[T, ...]) -> T:
        """Reads one of some strings."""
        value = self.text(name)
        for option in options:
            if option == value:
                return option
        raise self.problem(name, f"must be one of {', '.join(map(str, options))}")

    def object(self, name: str) -> Fields:
        """Reads an object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            self._refuse(name, "must be an object")
        return Fields(value, self._where, self._full(name))

    def items(self, name: str) -> list[Json]:
        """Reads a list of anything."""
        value = self.values.get(name)
        return value if isinstance(value, list) else self._refuse(name, "must be a list")

    def objects(self, name: str) -> list[Fields]:
        """Reads a list of objects."""
        values = self.items(name)
        if not all(type(value) is dict for value in values):
            entries = self._entries(name)
            return [entries.object(i) for i in entries.values]
        # The usual case, which is asked for every message of every stored episode.
        full = self._full(name)
        return [Fields(value, self._where, f"{full}.{i}") for i, value in enumerate(values) if isinstance(value, dict)]

    def texts(self, name: str) -> list[str]:
        """Reads a list of strings."""
        values = self.items(name)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) < len(values):
            entries = self._entries(name)
            return [entries.text(i) for i in entries.values]
        return texts

    def integers(self, name: str) -> list[int]:
        """Reads a list of integers."""
        entries = self._entries(name)
        return [entries.integer(i) for i in entries.values]

    def numbers(self, name: str) -> list[float]:
        """Reads a list of finite numbers."""
        entries = self._entries(name)
        return [entries.number(i) for i in entries.values]

    def text_mapping(self, name: str) -> dict[str, str]:
        """Reads an object whose values are strings."""
        fields = self.object(name)
        return {key: fields.text(key) for key in fields.values}

    def number_mapping(self, name: str) -> dict[str, float]:
        """Reads an object whose values are finite numbers."""
        fields = self.object(name)
        return {key: fields.number(key) for key in fields.values}

    def only(self, names: Set[str]) -> None:
        """Refuses fields of other names."""
        if not self.values.keys() <= names:
            self._refuse(next(name for name in self.values if name not in names), "is not a field that belongs here")

    def check_schema(self, schema: str) -> None:
        """Refuses an object that does not name this schema or an older version of it.

        Raises:
            RunError: It names a newer version.
        """
        stored = self.values.get("schema")
        if stored == schema:
            return
        family, _, version = stored.rpartition("/") if isinstance(stored, str) else ("", "", "")
        known, _, newest = schema.rpartition("/")
        if family != known or not _VERSION.fullmatch(version):
            raise RunCorruptError(f"{self._where} does not name its schema ({schema} or older): restore it")
        if int(version) > int(newest):
            raise RunError(
                f"{self._where} was written by a newer fate-gym (schema {stored}, this one reads {schema}): "
                "upgrade with `pip install -U fate-gym`"
            )

    def problem(self, name: str, what: str) -> RunCorruptError:
        """Returns the error for a field, such as `problem("seed", "must not be negative")`."""
        return RunCorruptError(f"{self._where}: {cut(self._full(name))} {what}")

    def _entries(self, name: str) -> Fields:
        """Reads a list as an object of its indices."""
        values = {str(i): entry for i, entry in enumerate(self.items(name))}
        return Fields(values, self._where, self._full(name))

    def _refuse(self, name: str, what: str) -> NoReturn:
        if name not in self.values:
            raise self.problem(name, "is missing")
        raise self.problem(name, f"{what}, not {_KINDS.get(type(self.values[name]), 'that')}")

    def _full(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a double can hold; True and False are none."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) < 2**1023
