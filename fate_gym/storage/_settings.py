"""Whether a folder may be continued with the settings that are given now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fate_gym.chat import Json
from fate_gym.errors import RunMismatchError
from fate_gym.storage._json import dump

_NOTHING = "nothing"
_LONGEST = 200
"""Characters of a value in a message."""


def check_same_settings(
    where: str, stored: Mapping[str, Json], given: Mapping[str, Json], may_change: Collection[str] = ()
) -> None:
    """Refuses to go on with other settings.

    Args:
        where: What is there, such as "runs/eval holds a run"; begins the error.
        stored: The settings that it was made with.
        given: The settings of now.
        may_change: Names, at the top level, of settings that may differ.

    Raises:
        RunMismatchError: Some differ; the message names each with both values.
    """
    old, new = (
        {name: value for name, value in settings.items() if name not in may_change} for settings in (stored, given)
    )
    if lines := [f"  {name}: stored {before}, given {after}" for name, before, after in settings_apart(old, new)]:
        raise RunMismatchError(
            "\n".join([f"{where} of other settings:", *lines, "Give another --out, or the same settings to resume it"])
        )


def settings_apart(first: Mapping[str, Json], second: Mapping[str, Json]) -> Iterator[tuple[str, str, str]]:
    """Yields what two mappings differ in: the dotted name, and both values as JSON, long ones cut."""
    one, other = dict(_leaves(first)), dict(_leaves(second))
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield name, one.get(name, _NOTHING)[:_LONGEST], other.get(name, _NOTHING)[:_LONGEST]


def _leaves(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, value as JSON) of every setting, nested ones by themselves."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dump({"": value})[4:-1].decode()
