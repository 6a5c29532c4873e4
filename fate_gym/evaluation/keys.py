"""Keys of episodes, a few bytes each: what a run of a million of them keeps in memory.

A key is `ATTACK/TASK_ID#REPEAT`. A long run holds some thousand tasks with many repeats, so that the names of the tasks
are held once, and of each episode its number alone. Any other text is a key too, and takes what it takes.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Set
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fate_gym.storage import Place

_NUMBERS: Final = 1024
"""Numbers of repeats that are told from names. Not more: a stranger's "a#9999999" must not take a megabyte."""

_PLACES: Final = {str(number): 1 + number for number in range(1000)}

Indices = NDArray[np.intp]


def _split(key: str) -> tuple[str, int]:
    """Returns (name, 1 + number) of a key "NAME#NUMBER"; of any other key itself and 0."""
    name, mark, number = key.rpartition("#")
    place = _PLACES.get(number, 0)
    return (name, place) if mark and place else (key, 0)


def _join(name: str, place: int) -> str:
    return f"{name}#{place - 1}" if place else name


class Keys(Set[str]):
    """A set of keys that grows.

    Args:
        keys: What it holds at first.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Bit i of a name's integer stands for its repeat i - 1.
        self._bits: dict[str, int] = {}
        self._size = 0
        if isinstance(keys, Keys):
            self._bits, self._size = keys._bits.copy(), keys._size
            return
        for key in keys:
            self.add(key)

    @classmethod
    def of_repeats(cls, repeats: Iterable[tuple[str, int]]) -> Keys:
        """Makes the keys NAME#0 to NAME#(n - 1) of each (name, n); of two names none may be the same."""
        keys = cls()
        for name, n in repeats:
            few = min(n, len(_PLACES))
            keys._bits[name] = (1 << few) - 1 << 1
            keys._size += few
            for number in range(few, n):
                keys.add(f"{name}#{number}")
        return keys

    def add(self, key: str) -> bool:
        """Adds a key; returns whether it was not there."""
        name, place = _split(key)
        bits = self._bits.get(name, 0)
        if bits >> place & 1:
            return False
        self._bits[name] = bits | 1 << place
        self._size += 1
        return True

    def minus(self, other: Keys) -> Keys:
        """Returns those that another set does not hold."""
        rest = Keys()
        for name, bits in self._bits.items():
            if left := bits & ~other._bits.get(name, 0):
                rest._bits[name] = left
                rest._size += left.bit_count()
        return rest

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        name, place = _split(key)
        return bool(self._bits.get(name, 0) >> place & 1)

    def __iter__(self) -> Iterator[str]:
        for name, bits in self._bits.items():
            for place in range(bits.bit_length()):
                if bits >> place & 1:
                    yield _join(name, place)

    def __len__(self) -> int:
        return self._size


class KeyList:
    """Keys in the order in which they came; one may come again."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._codes = array("q")

    def append(self, key: str) -> None:
        """Adds a key."""
        name, place = _split(key)
        self._codes.append(self._names.setdefault(name, len(self._names)) * _NUMBERS + place)

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        return self.at(range(len(self)))

    def at(self, indices: Iterable[int]) -> Iterator[str]:
        """Yields the keys of some indices."""
        names = list(self._names)
        for index in indices:
            name, place = divmod(self._codes[index], _NUMBERS)
            yield _join(names[name], place)

    def in_order(self) -> Indices:
        """Returns the last index of each key, tasks in natural order ("user_task_2" before "user_task_10")."""
        names = list(self._names)
        ranks = np.empty(len(names), dtype=np.int64)
        ranks[sorted(range(len(names)), key=lambda i: (_natural(names[i]), names[i]))] = np.arange(len(names))
        codes = np.array(self._codes)
        sortable = ranks[codes // _NUMBERS] * _NUMBERS + codes % _NUMBERS
        order = np.argsort(sortable, kind="stable")
        ordered = sortable[order]
        return order[np.append(ordered[1:] != ordered[:-1], True)] if len(order) else order

    def indices(self, keys: Iterable[str]) -> list[int]:
        """Returns the last index of each of some keys; raises `KeyError` if there is none."""
        wanted = [(key, self._names.get(name, -1) * _NUMBERS + place) for key in keys for name, place in [_split(key)]]
        # All codes are looked through once, not once for each key.
        codes = np.array(self._codes)
        found = np.flatnonzero(np.isin(codes, [code for _, code in wanted]))
        last = dict(zip(codes[found].tolist(), found.tolist(), strict=True))
        for key, code in wanted:
            if code not in last:
                raise KeyError(key)
        return [last[code] for _, code in wanted]

    def shared(self, other: KeyList) -> tuple[Indices, Indices]:
        """Returns the indices, in either list, of the keys that both hold, each once at most in either."""
        theirs = np.array([self._names.get(name, -1) for name in other._names], dtype=np.int64)
        codes = np.array(other._codes)
        codes = theirs[codes // _NUMBERS] * _NUMBERS + codes % _NUMBERS
        _, mine, others = np.intersect1d(np.array(self._codes), codes, assume_unique=False, return_indices=True)
        return mine, others


class Places:
    """Where the episodes of a file stand, noted while it is read: 24 bytes for each.

    Attributes:
        keys: Their keys.
    """

    def __init__(self) -> None:
        self.keys = KeyList()
        self._lines, self._starts = array("q"), array("q")

    def note(self, key: str, place: Place) -> None:
        """Adds an episode; of those with one key the last counts."""
        self.keys.append(key)
        self._lines.append(place.line)
        self._starts.append(place.start)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._lines[index], self._starts[index]


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts numbers in a text by their value."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]{0,18})", name)]
