"""JSON as all files have it: strict, in ASCII, not too deep; and the digest of a JSON value."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from jiter import from_json

from fate_gym.chat import Json

MAX_DEPTH = 200
"""Deepest nesting of a record: parsers give up somewhere above, depending on version and stack."""


# A surrogate in a Python string stands alone, whereas JSON writes other characters as pairs of them.
SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


class NotOursError(ValueError):
    """A whole JSON text that `dump` cannot have written; no crash of a writer leaves one behind."""


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
    # Each level begins with a bracket, and to count them takes a tenth of a look at every value.
    if text.count("[") + text.count("{") >= MAX_DEPTH:
        check_depth(value)
    if text.isascii():
        return text.encode()
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text).encode("ascii")


def encode_line(value: Mapping[str, Json]) -> bytes:
    """Returns a record as one line; raises as `dump` does."""
    return dump(value) + b"\n"


def parse(line: bytes) -> dict[str, Any]:
    """Returns the object on a line.

    Raises:
        ValueError: The line is anything else, lacks its end, or is read otherwise by other readers: NaN and infinities
            are not JSON, and of two equal keys some readers take the first and some the last.
    """
    if not line.endswith(b"\n"):
        raise ValueError("unfinished")
    try:
        value = from_json(line, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        value = _parse_slowly(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _parse_slowly(line: bytes) -> Any:
    """Tells what is wrong with a line that jiter refuses; and reads the lone surrogates of others' files."""
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def digest(value: Mapping[str, Json]) -> str:
    """Returns the SHA-256, in hex, of the canonical JSON of a mapping."""
    return hashlib.sha256(dump(value, sort_keys=True)).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise NotOursError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise NotOursError("a key is given twice")
    return values


def check_depth(value: Json) -> None:
    """Raises `ValueError` for a value that is nested deeper than `MAX_DEPTH`."""
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
