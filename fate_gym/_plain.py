"""Plain JSON out of any Python object, without trusting the object.

An action may be anything, and what is recorded of it must be JSON. A hostile object can lie about its class, raise out
of any of its methods, hold itself, or reach one list along 2**40 paths. So the class is asked of `type`, the contents
of strings, numbers and containers are read by the methods of the built-in class, and both depth and number of values
are bounded. Code of the object itself runs only where nothing else can read it, and then every exception is caught.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fate_gym.chat import Json

MAX_DEPTH = 64
"""Arguments of a call that are nested deeper are refused: serialisers further down recurse."""

MAX_VALUES = 100_000
"""Values (numbers, containers, keyed or listed) that are kept of one action; text counts once, however long."""

_ENVELOPE = 8
"""Levels of a message around the arguments of a call: message, list, call, function."""

_LARGEST_INT = 10**300
"""Readers of run folders turn numbers into floats, which end at 1.8e308."""


def to_json(value: Any) -> Json:
    """Returns the nearest JSON value; what JSON cannot hold becomes a short description such as "<bytes>"."""
    return _Converter(MAX_DEPTH + _ENVELOPE).convert(value)


def exact_json(value: Mapping[str, Any]) -> dict[str, Json] | None:
    """Returns a message as JSON; None if part of it had to be described, or might be too deep for arguments of a call.

    Nearly every message is exact, and then need not be read part by part, with a bound for each.
    """
    converter = _Converter(MAX_DEPTH)
    converted = converter.convert(value)
    return converted if converter.lost is None and isinstance(converted, dict) else None


def content_to_json(value: Any) -> Json:
    """Returns the content of a message as JSON.

    What had to be described is named by a part of a type that nobody reads, so that a description never passes for an
    answer.
    """
    converter = _Converter(MAX_DEPTH + _ENVELOPE)
    converted = converter.convert(value)
    if converter.lost is None:
        return converted
    parts = converted if isinstance(converted, list) else [converted] if isinstance(converted, dict) else []
    return [*parts, {"type": converter.lost}]


def arguments_to_json(value: Mapping[Any, Any]) -> Json:
    """Returns the arguments of a call that came as an object, so that they read the same from a run folder.

    That is the object itself, if it is plain. Otherwise it is JSON text, which is the API's own form: text holds
    integers of any size, and spells a NaN in the way that readers of JSON refuse. What not even text can hold becomes
    a description that is not JSON, so that the call stays unreadable when it is read again.
    """
    plain = _Converter(MAX_DEPTH)
    converted = plain.convert(value)
    if plain.lost is None:
        return converted
    exact = _Converter(MAX_DEPTH, all_numbers=True)
    converted = exact.convert(value)
    if exact.lost is None:
        try:
            return json.dumps(converted)
        except ValueError:  # Python writes no integer of more than 4300 digits
            return "<arguments with a huge integer>"
    return f"<arguments with {exact.lost}>"


def mapping_of(value: Any) -> dict[str, Any] | None:
    """Returns the items of a mapping under plain keys, or None if the value is not a mapping or raises when it is read.

    Looking a key up compares it with keys of the same hash, so no foreign key may stand in the dict that is returned.
    """
    kind = type(value)
    if kind is dict and {*map(type, value)} == {str} and "".join(value).isascii():
        plain: dict[str, Any] = value
        return plain
    if issubclass(kind, dict):
        items: Any = dict.items(value)
    else:
        items = guarded(lambda: list(value.items()) if issubclass(kind, Mapping) else None)
    return None if items is None else {_key(key): item for key, item in items}


def fields_of(value: Any) -> dict[str, Any] | None:
    """Returns what `mapping_of` does, of an SDK's object (anything with `model_dump`) too."""
    fields = mapping_of(value)
    return mapping_of(guarded(lambda: value.model_dump())) if fields is None else fields


def list_of(value: Any) -> list[Any] | None:
    """Returns the items of a list or tuple, or None if it is neither."""
    kind = type(value)
    if kind is list:
        items: list[Any] = value
        return items
    if issubclass(kind, list):
        return list(list.__iter__(value))
    return list(tuple.__iter__(value)) if issubclass(kind, tuple) else None


def guarded(foreign: Callable[[], Any]) -> Any:
    """Runs code of an object that is not trusted; returns None if it raises.

    Exceptions of extensions in Rust derive from `BaseException`. Ctrl-C alone gets through.
    """
    try:
        return foreign()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


def replace_surrogates(text: str) -> str:
    """Joins surrogate pairs and replaces lone ones by U+FFFD, which no encoder refuses."""
    if text.isascii():  # known without a look at the characters
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class _Converter:
    """One conversion, with its budget of values.

    Args:
        depth: Containers nested deeper are described.
        all_numbers: Keep integers of any size, NaN and infinities.

    Attributes:
        lost: What had to be described, None so far if nothing.
    """

    def __init__(self, depth: int, *, all_numbers: bool = False) -> None:
        self.lost: str | None = None
        self._depth = depth
        self._all_numbers = all_numbers
        self._left = MAX_VALUES

    def convert(self, value: Any) -> Json:
        kind = type(value)
        if kind is str:
            return replace_surrogates(value)
        if value is None or kind is bool:
            plain: bool | None = value
            return plain
        if (fields := mapping_of(value) if kind is dict else None) is not None:
            return self._convert_mapping(value, fields)
        if (items := list_of(value)) is not None:
            return self._convert_list(value, items)
        if issubclass(kind, str):
            return replace_surrogates(str.__str__(value))
        if issubclass(kind, int):
            number = int.__add__(value, 0)
            return number if self._all_numbers or abs(number) < _LARGEST_INT else self._describe(value)
        if issubclass(kind, float):
            real = float.__pos__(value)
            return real if self._all_numbers or real - real == 0 else self._describe(value)
        if (fields := mapping_of(value)) is not None:
            return self._convert_mapping(value, fields)
        return self._describe(value)

    def _convert_mapping(self, value: object, fields: dict[str, Any]) -> Json:
        if problem := self._spend(len(fields)):
            return self._describe(value, problem)
        converted = {key: self.convert(item) for key, item in fields.items()}
        self._depth += 1
        return converted

    def _convert_list(self, value: object, items: list[Any]) -> Json:
        if problem := self._spend(len(items)):
            return self._describe(value, problem)
        converted = [self.convert(item) for item in items]
        self._depth += 1
        return converted

    def _spend(self, values: int) -> str | None:
        """Enters a container, or says why it must not be entered."""
        if self._left < values:
            return "too many values"
        if self._depth == 0:
            return "too many levels"
        self._left -= values
        self._depth -= 1
        return None

    def _describe(self, value: object, lost: str | None = None) -> str:
        description = _description(value)
        self.lost = self.lost or lost or description
        return description


def _key(key: Any) -> str:
    kind = type(key)
    if kind is str:
        return replace_surrogates(key)
    if issubclass(kind, str):
        return replace_surrogates(str.__str__(key))
    if kind is int and abs(key) < _LARGEST_INT:
        return str(key)
    return _description(key)


def _description(value: object) -> str:
    """Names the class of a value that JSON cannot hold; a metaclass may lie about the name, or raise."""
    name = guarded(lambda: replace_surrogates(f"{type(value).__name__}"))
    return f"<{name or 'object'}>"
