"""Reading YAML that a user or a stranger wrote: bounded time and memory, and one line for whatever is wrong with it."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol

import yaml

from fate_gym.storage._reading import open_file

MAX_YAML: Final = 200_000
"""Most bytes of a file: PyYAML reads about as many in a second, and no settings need more."""

_MAX_DIGITS: Final = 300
"""Most characters of a number: long ones take quadratic time to convert."""

_MAX_VALUES: Final = 100_000
"""Most values of a document with its aliases written out: ten lines can stand for billions."""


_LONGEST: Final = 300
"""Most characters of PyYAML's own words, which repeat a stranger's."""


class _Source(Protocol):
    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


def read_yaml(source: _Source, name: str) -> dict[str, Any]:
    """Reads a file that holds one mapping with unique keys.

    Args:
        source: The file, as a path or a resource of a package.
        name: What errors call it.

    Raises:
        ValueError: It is too large or no such mapping.
        RunError: The path is not a regular file, or cannot be read.
    """
    # A pipe or a device in a stranger's folder may never end.
    with open_file(source) if isinstance(source, Path) else source.open("rb") as file:
        content = file.read(MAX_YAML + 1)
    if len(content) > MAX_YAML:
        raise ValueError(f"{name} has more than {MAX_YAML} bytes, more than settings ever need")
    settings = parse_yaml(content, name)
    if not isinstance(settings, dict):
        raise ValueError(f"{name} must hold a mapping of settings, not {type(settings).__name__}")
    odd = next((key for key in settings if not isinstance(key, str)), None)
    if odd is not None:
        raise ValueError(f"{name}: the key {odd!r} must be a string")
    return settings


def parse_yaml(content: bytes | str, name: str) -> Any:
    """Parses YAML.

    Raises:
        ValueError: It is not valid, repeats a key, or holds what would explode.
    """
    try:
        return yaml.load(content, _Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what = error.problem or error.context
        raise ValueError(f"{name}{place} is not valid YAML: {str(what)[:_LONGEST]}") from None
    except Exception as error:
        # PyYAML's constructors meet `!!bool x`, `!!timestamp x` and the like with whatever error they run into.
        raise ValueError(f"{name} is not valid YAML: {type(error).__name__}: {error}"[:_LONGEST]) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses repeated keys, endless numbers, and aliases that explode."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > _MAX_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"its aliases stand for more than {_MAX_VALUES} values", node.start_mark
            )
        return node


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Counts the values of a document with all of its aliases written out; linear, since shared nodes count once."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.composer.ComposerError(None, None, "an alias that contains itself", node.start_mark)
        return size
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = size = 1 + sum(_size(child, known) for child in children)
    return size


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    repeated = list(itertools.islice((str(key) for key, count in keys.items() if count > 1), 5))
    if repeated:
        raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {', '.join(repeated)}", node.start_mark)
    return loader.construct_mapping(node, deep=True)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number of {len(node.value)} characters", node.start_mark
        )
    return (loader.construct_yaml_int if node.tag.endswith(":int") else loader.construct_yaml_float)(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
