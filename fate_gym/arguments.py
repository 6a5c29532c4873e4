"""The arguments of a class as data, read from its signature and docstring, and the check of those that are given."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from fate_gym.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument.

    Attributes:
        name: Its name.
        type: What it takes, such as "str | Mapping[str, str] | None".
        default: Its default as Python writes it; None where it must be given.
        meaning: What it means, in whole sentences.
        accepted: All values that it accepts where these are few and have names, () elsewhere.
    """

    name: str
    type: str
    default: str | None
    meaning: str
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Described:
    """What a class says of itself.

    Attributes:
        summary: One sentence.
        text: The paragraphs below it; "" where there are none.
        arguments: Its constructor's.
    """

    summary: str
    text: str
    arguments: tuple[Argument, ...]


def describe(
    thing: Callable[..., Any],
    *,
    defaults: Mapping[str, object] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    leave_out: Collection[str] = (),
) -> Described:
    """Describes a class by its signature and its Google docstring.

    Args:
        thing: The class, or a function.
        defaults: Defaults that stand in place of the signature's.
        choices: Accepted values that the types do not tell.
        leave_out: Arguments to leave out.
    """
    # Declared by the package that agentdojo brings; loaded here, since `import fate_gym` stays light.
    from docstring_parser import DocstringStyle, parse

    text = parse(inspect.getdoc(thing) or "", DocstringStyle.GOOGLE)
    meanings = {entry.arg_name: _one_line(entry.description or "") for entry in text.params}
    arguments = []
    for parameter in _parameters(thing):
        if parameter.name in leave_out:
            continue
        hint = parameter.annotation
        default = (defaults or {}).get(parameter.name, parameter.default)
        accepted = tuple((choices or {}).get(parameter.name, ())) or tuple(dict.fromkeys(map(str, _literals(hint))))
        arguments.append(
            Argument(
                parameter.name,
                _type_name(hint),
                None if default is parameter.empty else repr(default),
                meanings.get(parameter.name, ""),
                accepted,
            )
        )
    return Described(_one_line(text.short_description or ""), text.long_description or "", tuple(arguments))


def check_arguments(
    thing: Callable[..., Any], given: Mapping[str, object], *, of: str, beside: Sequence[str] = ()
) -> None:
    """Checks keyword arguments before they are passed: their names, and whether plain values are of the right type.

    Args:
        thing: The class or function that receives them.
        given: The arguments.
        of: What the user calls it.
        beside: Names that are known and go elsewhere; an error lists them too.

    Raises:
        UsageError: A name is unknown, or an argument without default is missing.
        ValueError: A value is of another type than the argument.
    """
    takes_any = any(each.kind is each.VAR_KEYWORD for each in inspect.signature(thing).parameters.values())
    parameters = {each.name: each for each in _parameters(thing)}
    known = [*parameters, *beside]
    for name in sorted(() if takes_any else given.keys() - parameters.keys()):
        takes = f"it takes: {', '.join(known)}" if known else "it takes none"
        raise UsageError(f"{of} has no argument {name!r}{did_you_mean(name, known)}; {takes}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise UsageError(f"{of} needs the argument {name!r}")
        if name in given and not _fits(given[name], parameter.annotation):
            (argument,) = (each for each in describe(thing).arguments if each.name == name)
            raise ValueError(
                f"{name} must be {argument.type}, got {repr(given[name])[:80]}. {argument.meaning}".strip()
            )


def _parameters(thing: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    """The named parameters of a class or a function, with types where these can be resolved at run time."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        signature = inspect.signature(thing, eval_str=True)
    except NameError:
        signature = inspect.signature(thing)
    return [each for each in signature.parameters.values() if each.kind in named]


def _type_name(hint: Any) -> str:
    """Writes a type as a person would."""
    if hint is inspect.Parameter.empty:
        return ""
    if isinstance(hint, str):
        return hint
    if hint is None or hint is type(None):
        return "None"
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_type_name, parts)))
    if origin is Literal:
        return " | ".join(dict.fromkeys(type(value).__name__ for value in parts))
    name = getattr(origin or hint, "__name__", str(hint))
    if name == "Callable":
        return "function"
    if name == "PathLike":
        return "path"
    return f"{name}[{', '.join(map(_type_name, parts))}]" if parts else str(name)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value can be of a type; True where only the receiver can know."""
    if not isinstance(value, str | int | float | list | dict | None):
        return True
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(_fits(value, type(choice)) for choice in get_args(hint))
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (str, bool, list, dict):
        return isinstance(value, origin)
    if origin is collections.abc.Mapping:
        return isinstance(value, dict)
    if origin is collections.abc.Sequence:
        return isinstance(value, list)
    if origin in (None, types.NoneType):
        return value is None
    # A plain value is never a function or a path; of other classes nothing is known.
    return origin not in (collections.abc.Callable, os.PathLike)


def _literals(hint: Any) -> Iterator[object]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for part in get_args(hint):
        yield from _literals(part)


def _one_line(text: str) -> str:
    return " ".join(text.split())
