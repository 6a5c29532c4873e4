"""An environment in pieces: an episode loads the fields that its tools ask for, and leaves the others packed.

Most calls read or change one field of an environment (the inbox, the calendar), and loading the rest is most of what a
short episode would cost, in time and in memory. All copies share their longer texts, which nobody can change.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from agentdojo.functions_runtime import Function, TaskEnvironment
from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo.unpickling import EnvironmentUnpickler

_VALUES = "__dict__"
_SHARED_FROM = 16
"""Characters of a text that is not copied; the names of fields are shorter, and a pickle holds each of them once."""


@dataclass(frozen=True, slots=True)
class PackedEnvironment:
    """An environment, of which any number of copies can be loaded, whole or field by field.

    Attributes:
        kind: The type of the environment.
        frame: The pickled state of the model without its fields.
        fields: For each field the pickle of a dict of it, and of the fields that share objects with it.
        texts: The texts that the pickles of the fields refer to by their index.
    """

    kind: type[TaskEnvironment]
    frame: bytes
    fields: Mapping[str, bytes]
    texts: Sequence[str]

    @classmethod
    def pack(cls, environment: TaskEnvironment) -> PackedEnvironment:
        """Packs an environment."""
        state = environment.__getstate__()
        values = state.pop(_VALUES)
        index: dict[str, int] = {}
        if _share_objects(values.values()):
            fields = dict.fromkeys(values, _Packer.pack(values, index))
        else:
            fields = {name: _Packer.pack({name: value}, index) for name, value in values.items()}
        return cls(type(environment), pickle.dumps(state, pickle.HIGHEST_PROTOCOL), fields, tuple(index))

    def load(self) -> TaskEnvironment:
        """Returns a copy of the whole environment."""
        environment = self.frame_alone()
        self.fill(environment, self.fields)
        return environment

    def frame_alone(self) -> TaskEnvironment:
        """Returns an environment without its fields, for `fill`."""
        environment: TaskEnvironment = object.__new__(self.kind)
        environment.__setstate__({**pickle.loads(self.frame), _VALUES: {}})  # noqa: S301 (packed above)
        return environment

    def fill(self, environment: TaskEnvironment, names: Iterable[str]) -> None:
        """Loads those of the named fields that the environment lacks."""
        values = vars(environment)
        for name in names:
            if name not in values:
                unpickler = pickle.Unpickler(io.BytesIO(self.fields[name]))  # noqa: S301 (packed above)
                unpickler.persistent_load = self.texts.__getitem__  # type: ignore[method-assign]
                values.update(unpickler.load())

    @staticmethod
    def complete(environment: TaskEnvironment, rest: TaskEnvironment) -> None:
        """Gives an environment the fields it lacks from a whole one, which shares them from then on.

        The order of the fields becomes that of the whole one, since what prints a model follows it.
        """
        values = vars(environment)
        whole = {**vars(rest), **values}
        values.clear()
        values.update(whole)

    def needed_by(self, function: Function[Any, Any]) -> Collection[str]:
        """Returns the fields that a tool depends on; all, where it depends on anything but fields."""
        names = [dependency.env_dependency for dependency in function.dependencies.values()]
        return names if all(isinstance(name, str) and name in self.fields for name in names) else self.fields

    def dump(self, environment: TaskEnvironment) -> bytes:
        """Pickles the fields that the environment has."""
        return pickle.dumps(vars(environment), protocol=5)

    def restore(self, data: bytes) -> TaskEnvironment:
        """Reads what `dump` gave, which may come from anywhere.

        Raises:
            pickle.UnpicklingError: The bytes hold anything but fields of such an environment.
        """
        package = self.kind.__module__.partition(".")[0]
        values = EnvironmentUnpickler(io.BytesIO(data), package).load()
        if not isinstance(values, dict) or not all(self._may_hold(name, value) for name, value in values.items()):
            raise pickle.UnpicklingError(f"not the fields of a {self.kind.__name__}")
        environment = self.frame_alone()
        vars(environment).update(values)
        return environment

    def _may_hold(self, name: object, value: object) -> bool:
        if name not in self.fields:
            return False
        field = self.kind.model_fields.get(str(name))
        return field is None or not isinstance(field.annotation, type) or isinstance(value, field.annotation)


class _Packer(pickle.Pickler):
    """Pickles a value, without its longer texts.

    Args:
        file: Where the pickle goes.
        index: The texts met so far, each with its place; those of this value are added.
    """

    def __init__(self, file: IO[bytes], index: dict[str, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._index = index

    def persistent_id(self, value: Any) -> int | None:
        """Returns the place of a longer text, None for anything else."""
        if type(value) is not str or len(value) < _SHARED_FROM:
            return None
        return self._index.setdefault(value, len(self._index))

    @classmethod
    def pack(cls, value: Any, index: dict[str, int]) -> bytes:
        """Returns the pickle of a value."""
        file = io.BytesIO()
        cls(file, index).dump(value)
        return file.getvalue()


def _share_objects(values: Iterable[Any]) -> bool:
    """Whether an object that can be changed in place stands in more than one of the values."""
    seen: set[int] = set()
    for value in values:
        own: set[int] = set()
        _note_objects(value, own)
        if own & seen:
            return True
        seen |= own
    return False


def _note_objects(value: Any, found: set[int]) -> None:
    if id(value) in found:
        return
    if isinstance(value, BaseModel):
        value = vars(value)
    if isinstance(value, Mapping | list | tuple | set):
        found.add(id(value))
        for item in value.values() if isinstance(value, Mapping) else value:
            _note_objects(item, found)
