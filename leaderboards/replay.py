"""Recorded episodes played again in fresh environments, and what came out otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from fate_gym.agents.replay import Recording
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.pool import run_episodes
from fate_gym.storage import is_finite

CUT_BY_AGENT: Final = ("context_overflow", "endless_reply")
"""How episodes end that their agent had to cut off; no action of such an episode says so."""

_NOT_REPLAYED: Final = ("seconds", "usage", "attempts")
"""What an episode's record holds of its agent; the environment knows nothing of it."""

ABSENT: Final = object()
"""Stands for the value of a field that is not there; null is a value."""

Record = Mapping[str, object]
"""An episode as `Episode.to_json` gives it."""

Change = tuple[str, object, object]
"""(dotted name, stored value, recomputed value)"""


async def replay(
    plan: Plan,
    episodes: Iterable[tuple[Item, Episode]],
    on_done: Callable[[Episode, Episode], None],
    *,
    concurrency: int = 4,
) -> None:
    """Plays episodes again.

    Args:
        plan: Makes the environments.
        episodes: What to play, each with its place in the plan; read as it goes.
        on_done: Called with each episode and the one that came of it, in the order in which they end.
        concurrency: Episodes under way at once.
    """
    # By the item's own identity: a failure may stand several times under one key.
    under_way: dict[int, Episode] = {}

    def items() -> Iterator[Item]:
        for planned, episode in episodes:
            item = dataclasses.replace(planned)
            under_way[id(item)] = episode
            yield item

    def recording(item: Item) -> Recording:
        return Recording(under_way[id(item)])

    async def compare(item: Item, again: Episode) -> None:
        on_done(under_way.pop(id(item)), again)

    await run_episodes(plan, items(), recording, concurrency=concurrency, on_done=compare)


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
