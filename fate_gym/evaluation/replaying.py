"""Recorded actions played again: by `verify`, by imports, by the agent `replay:RUN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.episode import Episode
from fate_gym.errors import CUTS, CallsLeftError, NoReplyError, ProviderError
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.workers import InProcess
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

R = TypeVar("R", bound=Agent)
"""A recording, or an agent that plays one."""


class Recording(Agent):
    """Plays the actions of one episode, whatever the task.

    Args:
        actions: The actions, in order.
        end: What the agent does when it is asked once more.
    """

    name = "recording"

    def __init__(self, actions: Iterable[Json], end: NoReplyError) -> None:
        self._actions, self._end = tuple(actions), end

    @classmethod
    def of(cls, episode: Episode) -> Recording:
        """Returns the recording of one of our own episodes."""
        if episode.ended == CallsLeftError.ended and episode.actions:
            return cls(episode.actions[:-1], CallsLeftError("recorded", action=episode.actions[-1]))
        if episode.ended in CUTS:
            return cls(episode.actions, CUTS[episode.ended]("recorded"))
        end = episode.error or "the recorded episode has no further action: its turn limit was another"
        return cls(episode.actions, ProviderError(end))

    def start(self, task: Task, seed: int) -> Session:
        """Begins at the first action."""
        return _Session(iter(self._actions), self._end)


@dataclass(frozen=True, slots=True)
class _Session:
    actions: Iterator[Json]
    end: NoReplyError

    async def act(self, observation: Observation) -> Reply:
        for action in self.actions:
            return Reply(action)
        raise self.end


async def replay(
    plan: Plan,
    recordings: Iterable[tuple[Item, R]],
    on_done: Callable[[R, Episode], None],
    *,
    concurrency: int = 4,
) -> None:
    """Plays recordings, each at its place in the plan.

    Args:
        plan: Makes the environments.
        recordings: What to play, with defences around it or without; read as it goes. The same place may come several
            times.
        on_done: Called with each recording and the episode that came of it, in the order in which they end.
        concurrency: Episodes under way at once.
    """
    # By the item's own identity, since a place may come several times.
    under_way: dict[int, R] = {}

    def items() -> Iterator[Item]:
        for planned, recording in recordings:
            item = dataclasses.replace(planned)
            under_way[id(item)] = recording
            yield item

    async def done(item: Item, episode: Episode) -> None:
        on_done(under_way.pop(id(item)), episode)

    player = Player(plan.environments, lambda item: under_way[id(item)], lambda episode: episode)
    await run_episodes(items(), InProcess(player), concurrency=concurrency, on_done=done)
