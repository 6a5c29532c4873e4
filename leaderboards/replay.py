"""Recorded episodes played again in fresh environments, and what came out otherwise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.env import Observation, ToolEnv
from fate_gym.episode import Episode
from fate_gym.errors import ContextOverflowError, ProviderError
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.rollout import Agent, Reply, Session, rollout
from fate_gym.task import Task

OVERFLOW: Final = "context_overflow"
"""How an episode ends whose conversation outgrew the model; no action of it says so."""

_NOT_REPLAYED: Final = ("seconds", "usage", "attempts")
"""What an episode's record holds of its agent; the environment knows nothing of it."""

ABSENT: Final = object()
"""Stands for the value of a field that is not there; null is a value."""

Record = Mapping[str, Any]
"""An episode as `Episode.to_json` gives it."""

Change = tuple[str, Any, Any]
"""(dotted name, stored value, recomputed value)"""


class Recorded(Agent):
    """Plays one recorded episode."""

    name = "recorded"

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    def start(self, task: Task, seed: int) -> Session:
        """Begins at the first action."""
        end = ContextOverflowError("recorded") if self._episode.ended == OVERFLOW else ProviderError(self._error)
        return _Player(iter(self._episode.actions), end)

    @property
    def _error(self) -> str:
        return self._episode.error or "it was not over when its recorded actions were"


@dataclass(frozen=True, slots=True)
class _Player:
    actions: Iterator[Json]
    end: Exception

    async def act(self, observation: Observation) -> Reply:
        for action in self.actions:
            return Reply(action)
        raise self.end


async def replay(
    plan: Plan,
    episodes: Iterable[tuple[Item, Episode]],
    on_done: Callable[[Episode, Episode], None],
    *,
    concurrency: int = 4,
) -> None:
    """Plays episodes again; environments step in threads, so many at once.

    Args:
        plan: Makes the environments.
        episodes: What to play, each with its place in the plan; read as it goes.
        on_done: Called with each episode and the one that came of it, in the order in which they end.
        concurrency: Episodes under way at once.
    """
    waiting = iter(episodes)

    async def work() -> None:
        envs: dict[int, ToolEnv] = {}
        for item, episode in waiting:
            if item.variant not in envs:
                envs[item.variant] = plan.make_env(item.variant)
            env = envs[item.variant]
            again = await rollout(env, Recorded(episode), item.task_id, item.seed, repeat=item.repeat, key=item.key)
            on_done(episode, again)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())


def changes(stored: Record, fresh: Record) -> Iterator[Change]:
    """Yields what is otherwise in a replayed episode: verdict, vector, messages, calls, and all else of the world."""
    for name in {**fresh, **stored}:
        if name not in _NOT_REPLAYED:
            yield from leaves(stored.get(name, ABSENT), fresh.get(name, ABSENT), name)


def leaves(stored: Any, fresh: Any, name: str) -> Iterator[Change]:
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


def _equal(stored: Any, fresh: Any) -> bool:
    if isinstance(stored, bool) or isinstance(fresh, bool):
        return stored is fresh
    if isinstance(stored, float) or isinstance(fresh, float):
        if not isinstance(stored, int | float) or not isinstance(fresh, int | float):
            return False
        return math.isclose(stored, fresh, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stored == fresh)
