"""Unpickling that can make an environment's data and nothing else."""

import enum
import pickle
import sys
from typing import IO, Any

from pydantic import BaseModel

_PLAIN = {
    "builtins": {"bytearray", "complex", "frozenset", "set"},
    "collections": {"OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "pydantic_core._pydantic_core": {"TzInfo"},
    "uuid": {"UUID"},
}


class EnvironmentUnpickler(pickle.Unpickler):
    """Accepts models and enums of AgentDojo and of one more package, and the plain types that their fields hold.

    A pickle names what it wants called. Here that can only be a data class, by its own name, from a module that is
    imported already: nothing is imported, and no function is ever reached.

    Args:
        file: The pickle.
        package: The top-level package of a custom suite's environment type.
    """

    def __init__(self, file: IO[bytes], package: str) -> None:
        super().__init__(file)
        self._packages = {"agentdojo", package}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global that the pickle names, or raise `pickle.UnpicklingError`."""
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        if module.partition(".")[0] in self._packages and module in sys.modules:
            cls = super().find_class(module, name)
            # The module of the class is looked at too: a module's globals hold what it imports.
            if isinstance(cls, type) and issubclass(cls, BaseModel | enum.Enum) and cls.__module__ == module:
                return cls
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an environment")
