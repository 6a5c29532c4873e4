"""What came out otherwise when a recorded episode was played again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from fate_gym.storage import is_finite

_NOT_REPLAYED: Final = ("seconds", "usage", "attempts")
"""What an episode's record holds of its agent; the environment knows nothing of it."""

ABSENT: Final = object()
"""Stands for the value of a field that is not there; null is a value."""

Record = Mapping[str, object]
"""An episode as `Episode.to_json` gives it."""

Change = tuple[str, object, object]
"""(dotted name, stored value, recomputed value)"""


def changes(stored: Record, fresh: Record) -> Iterator[Change]:
    """Yields what is otherwise in a replayed episode: verdict, vector, messages, calls, and all else of the world."""
    for name in {**fresh, **stored}:
        if name not in _NOT_REPLAYED:
            yield from leaves(stored.get(name, ABSENT), fresh.get(name, ABSENT), name)


def leaves(stored: object, fresh: object, name: str) -> Iterator[Change]:
    """Yields the leaves in which two JSON values differ; numbers that differ by rounding are equal."""
    if isinstance(stored, Mapping) and isinstance(fresh, Mapping):
        for key in sorted({*stored, *fresh}):
            yield from leaves(stored.get(key, ABSENT), fresh.get(key, ABSENT), f"{name}.{key}" if name else key)
    elif isinstance(stored, list) and isinstance(fresh, list) and len(stored) == len(fresh):
        for i, pair in enumerate(zip(stored, fresh, strict=True)):
            yield from leaves(*pair, f"{name}[{i}]")
    elif isinstance(stored, list) and isinstance(fresh, list):
        yield f"{name} (length)", len(stored), len(fresh)
    elif not _equal(stored, fresh):
        yield name, stored, fresh


def _equal(stored: object, fresh: object) -> bool:
    if isinstance(stored, bool) or isinstance(fresh, bool):
        return stored is fresh
    if isinstance(stored, float) or isinstance(fresh, float):
        # An integer may be too large for any float.
        return is_finite(stored) and is_finite(fresh) and math.isclose(stored, fresh, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stored == fresh)
