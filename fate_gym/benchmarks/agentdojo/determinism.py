"""A frozen clock and ordered sets for AgentDojo's tools, inside `deterministic()` and nowhere else.

AgentDojo's tools write the time of day into new emails and files, and put the participants of a new event in the
order of a `set`, which changes with PYTHONHASHSEED. No other tool depends on a clock, a hash or a random number.
`Email.timestamp` also has a default that reads the clock, bound when the class was made; it is out of reach here, but
no tool leaves it to the default, and no email of the default suites does.
"""

import builtins
import datetime
import functools
import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from fate_gym.benchmarks.agentdojo.switch import Switch

FROZEN_NOW = (2026, 1, 1, 12, 0, 0)
"""The frozen time, as arguments of `datetime`: later than every timestamp of the default suites (July 2024 is the
last), since graders want a changed file to be newer than it was."""

_deterministic = Switch("fate_gym_agentdojo_deterministic")
_TOOLS = "agentdojo.default_suites.v1.tools"


def deterministic() -> AbstractContextManager[None]:
    """Make AgentDojo's tools give the same result every time, in this thread or task.

    Outside the context, and in other threads meanwhile, AgentDojo works as it always does. Contexts may be nested.
    """
    _install()
    return _deterministic.on()


class _FrozenDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        # A new object each time: YAML prints an object that occurs twice as an anchor and an alias.
        return datetime.datetime(*FROZEN_NOW, tzinfo=tz)


class _DatetimeModule:
    """Stands in for the `datetime` module in a tool module's globals."""

    def __getattr__(self, name: str) -> Any:
        if name == "datetime" and _deterministic.is_on:
            return _FrozenDatetime
        return getattr(datetime, name)


def _set(items: Iterable[Any] = ()) -> Any:
    """Stands in for `set` in a tool module's globals: set-like, and in the order of insertion."""
    return dict.fromkeys(items).keys() if _deterministic.is_on else builtins.set(items)


@functools.cache
def _install() -> None:
    # Run twice at once by two threads, it sets the same things twice.
    for module in ("email_client", "cloud_drive_client", "types"):
        vars(importlib.import_module(f"{_TOOLS}.{module}"))["datetime"] = _DatetimeModule()
    vars(importlib.import_module(f"{_TOOLS}.calendar_client"))["set"] = _set
