"""Reads plain YAML or JSON values into frozen dataclasses, by the types of their fields."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from fate_gym.attack import Attack


def read_dataclass(kind: type, value: Any, where: str = "") -> Any:
    """Reads a mapping as a dataclass, field by field.

    Args:
        kind: The dataclass.
        value: The mapping, as YAML or JSON has it.
        where: Its own name in the file, with dots; "" for the whole file.

    Raises:
        ValueError: A key is unknown, or a value has another type or makes no sense; the message names the key.
    """
    _expect(isinstance(value, dict), where or "the configuration", "a mapping", value)
    # `Json` is a text that names these, whether or not the module of the dataclass imports them too.
    hints = typing.get_type_hints(kind, localns={"Mapping": Mapping, "Sequence": Sequence})
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are: {', '.join(hints)}"
            raise ValueError(f"unknown setting {prefix}{key}; {hint}")
    read = {key: _read(hints[key], entry, f"{prefix}{key}") for key, entry in value.items()}
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _read(kind: Any, value: Any, where: str) -> Any:
    """Reads a value as the declared type of a field."""
    if kind in (Any, Attack):
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return (
            None if value is None else _read(next(one for one in arguments if one is not types.NoneType), value, where)
        )
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, "a mapping", value)
        # Settings of ours, or any JSON: options of an agent or an environment, which alone know their types.
        if not dataclasses.is_dataclass(arguments[1]):
            return {str(key): entry for key, entry in value.items()}
        return {str(key): _read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        return read_dataclass(typing.cast(type, kind), value, where)
    # bool is a subclass of int in Python, and true is no number in a configuration.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML reads 1e-4, which has no point, as a string.
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{where} must be a number, got {value!r}") from None
    _expect(type(value) is kind, where, _NAMES.get(kind, kind.__name__), value)
    return value


_NAMES: Final = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Reads a list. Where its length is free, a value that is no list is read as a list with one entry."""
    any_length = arguments[-1] is Ellipsis
    values = value if isinstance(value, list | tuple) else [value]
    if not any_length:
        _expect(len(values) == len(arguments), where, f"{len(arguments)} values", value)
    kinds = [arguments[0]] * len(values) if any_length else arguments
    return tuple(_read(kind, entry, f"{where}[{n}]") for n, (kind, entry) in enumerate(zip(kinds, values, strict=True)))


def _expect(holds: bool, where: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{where} must be {expected}, got {value!r}")
