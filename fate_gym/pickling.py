"""How environments, agents and defences are pickled, and how their options are described in one line."""

from __future__ import annotations

import inspect
import pickle
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from fate_gym.benchmark import Benchmark


class Remade:
    """What is pickled as the call that made it: connections, locks and models stay where they are.

    A copy is made by the same call, in another process perhaps, and has nothing of what happened to the first.
    """

    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Notes the call, so that no subclass has to."""
        made = super().__new__(cls)
        # Not by assignment: a subclass may be a frozen dataclass.
        object.__setattr__(made, "_call", (args, options))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the call."""
        return _remake, (type(self), *self._call)


def _remake(kind: type[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return kind(*args, **options)


def check_picklable(options: Mapping[str, Any]) -> None:
    """Makes sure that options can be pickled.

    Raises:
        TypeError: One cannot; the message names it.
    """
    for name, value in options.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"this environment cannot be pickled: its option {name!r} is {reprlib.repr(value)} ({error}); give a "
                "function or an object that stands in a module by its name"
            ) from error


def described(benchmark: Benchmark) -> Iterator[str]:
    """Yields the options that differ from their defaults, as "name=value"; values are short, and hold no address."""
    parameters = inspect.signature(type(benchmark)).parameters
    for name, value in benchmark.options.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if value is not default and value != default:
            # Addresses may hold logins, objects say nothing.
            plain = isinstance(value, str | int | float | list | tuple) and "://" not in str(value)
            yield f"{name}={reprlib.repr(value) if plain else '...'}"
