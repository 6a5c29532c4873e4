"""AgentDojo's text of a tool's result, byte for byte, faster.

AgentDojo prints results with PyYAML's pure Python dumper, which spends its time on looking at every string character
by character; the next call prints mostly the same strings again. Here PyYAML's own emitter still writes every scalar,
but once for each (text, place), and a few lines lay the block style out around it. libyaml's emitter is no
substitute: it folds and quotes long and non-ASCII strings differently.
"""

import datetime
import functools
import io
from typing import Any

import yaml
from agentdojo.strenum import StrEnum
from pydantic import BaseModel

_CACHED_SCALARS = 8192
_LONGEST_KEY = 100
"""PyYAML writes keys of 128 characters and more, quotes included, in another style."""


_REPRESENTER = yaml.representer.SafeRepresenter()


class _UnusualError(Exception):
    """The data needs more of YAML than the fast path knows."""


def format_result(result: Any) -> str:
    """Equal to `agentdojo.agent_pipeline.tool_execution.tool_result_to_str(result)`.

    Args:
        result: What a tool returned.

    Raises:
        TypeError: For a list that holds anything but strings, integers and models, as upstream.
    """
    if isinstance(result, BaseModel):
        return _dump(result.model_dump()).strip()
    if isinstance(result, list):
        return _dump([_item(item) for item in result]).strip()
    return str(result)


def _item(item: Any) -> Any:
    if type(item) in (str, int):
        return str(item)
    if isinstance(item, BaseModel):
        return item.model_dump()
    raise TypeError("Not valid type for item tool result: " + str(type(item)))


def _dump(data: Any) -> str:
    """Equal to `yaml.safe_dump(data)`."""
    parts: list[str] = []
    try:
        if type(data) is list and data:
            _write_list(data, 0, parts, set())
        elif type(data) is dict and data:
            _write_dict(data, 0, "\n", parts, set())
        else:
            raise _UnusualError
    except _UnusualError:
        return str(yaml.safe_dump(data))
    return "".join(parts)[1:] + "\n"  # every line break stands in front of its line


def _write_list(data: list[Any], indent: int, parts: list[str], seen: set[int]) -> None:
    line = "\n" + " " * indent + "-"
    for item in data:
        if type(item) is dict and item:
            _note(item, seen)
            _write_dict(item, indent + 2, line + " ", parts, seen)
        elif type(item) is list:
            raise _UnusualError
        else:
            parts += (line, _leaf(item, indent + 1, indent, seen))


def _write_dict(data: dict[Any, Any], indent: int, line: str, parts: list[str], seen: set[int]) -> None:
    if any(type(key) is not str for key in data):
        raise _UnusualError
    for key in sorted(data):
        value = data[key]
        name = _key(key)
        parts += (line, name, ":")
        line = "\n" + " " * indent
        if type(value) is list and value:
            _note(value, seen)
            _write_list(value, indent, parts, seen)
        elif type(value) is dict and value:
            _note(value, seen)
            _write_dict(value, indent + 2, line + "  ", parts, seen)
        else:
            parts.append(_leaf(value, indent + len(name) + 1, indent, seen))


def _leaf(value: Any, column: int, indent: int, seen: set[int]) -> str:
    """A scalar or an empty collection, with the blank in front of it."""
    kind = type(value)
    if kind is str:
        return _scalar("str", value, column, indent)
    if value is None:
        return " null"
    if kind is bool:
        return " true" if value else " false"
    if kind is int:
        return f" {value}"
    if isinstance(value, StrEnum):
        return _scalar("str", str(value.value), column, indent)
    if kind is float:
        return _scalar("float", _REPRESENTER.represent_float(value).value, column, indent)
    _note(value, seen)
    if kind is datetime.datetime:
        return _scalar("timestamp", value.isoformat(" "), column, indent)
    if kind is datetime.date:
        return _scalar("timestamp", value.isoformat(), column, indent)
    if kind is list:
        return " []"
    if kind is dict:
        return " {}"
    raise _UnusualError


def _note(value: Any, seen: set[int]) -> None:
    """Remember an object that YAML would print as an anchor if it came twice."""
    if id(value) in seen:
        raise _UnusualError
    seen.add(id(value))


@functools.lru_cache(_CACHED_SCALARS)
def _key(text: str) -> str:
    if not text or len(text) > _LONGEST_KEY or not text.isprintable():
        raise _UnusualError
    return _emit("str", text, 0, 0, simple_key=True)


@functools.lru_cache(_CACHED_SCALARS)
def _scalar(tag: str, text: str, column: int, indent: int) -> str:
    return _emit(tag, text, column, indent, simple_key=False)


def _emit(tag: str, text: str, column: int, indent: int, *, simple_key: bool) -> str:
    """PyYAML's own text of one scalar that starts at a column, in a block of some indent."""
    stream = io.StringIO()
    dumper: Any = yaml.SafeDumper(stream)
    tag = f"tag:yaml.org,2002:{tag}"
    plain, quoted = (
        tag == dumper.resolve(yaml.ScalarNode, text, implicit) for implicit in ((True, False), (False, True))
    )
    dumper.event = yaml.ScalarEvent(None, tag, (plain, quoted), text)
    dumper.states = [None]
    dumper.column, dumper.indent = column, indent
    dumper.whitespace, dumper.indention = simple_key, False
    dumper.expect_node(mapping=True, simple_key=simple_key)
    return stream.getvalue()
