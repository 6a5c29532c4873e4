"""What of an environment's options can be pickled, and how they are described in one line."""

from __future__ import annotations

import inspect
import pickle
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from fate_gym.benchmark import Benchmark


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
