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
        dict(_leaves({name: value for name, value in settings.items() if name not in may_change}))
        for settings in (stored, given)
    )
    lines = [
        f"  {name}: stored {old.get(name, _NOTHING)[:_LONGEST]}, given {new.get(name, _NOTHING)[:_LONGEST]}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if lines:
        raise RunMismatchError(
            "\n".join([f"{where} of other settings:", *lines, "Give another --out, or the same settings to resume it"])
        )


def _leaves(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, value as JSON) of every setting, nested ones by themselves."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dump({"": value})[4:-1].decode()
