"""What a defence is: a wrapper that stands between the environment and an agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from fate_gym.env import Observation
from fate_gym.pickling import Remade
from fate_gym.rollout import Reply, Session

Begin: TypeAlias = Callable[[], Session]
"""Begins a session of the agent behind a defence."""


class Defence(Remade, ABC):
    """What stands in front of an agent. One defence serves many episodes at once.

    Attributes:
        name: Stands in the defended agent's name.
    """

    name: str

    @abstractmethod
    def start(self, begin: Begin) -> Session:
        """Begins an episode.

        Args:
            begin: Begins a session of what is defended; may be called again for a conversation apart.
        """

    async def check(self) -> None:
        """Finds out, before a run, whether the defence can work at all.

        Raises:
            UsageError: It cannot; one line says why.
        """
        return


class View(Defence):
    """A defence that changes only what the agent sees, each time anew from the whole conversation."""

    @abstractmethod
    async def show(self, observation: Observation) -> Observation:
        """Returns what the agent sees in place of an observation, which is not changed."""

    def start(self, begin: Begin) -> Session:
        """Begins an episode."""
        return _ViewSession(self, begin())


class _ViewSession:
    def __init__(self, view: View, session: Session) -> None:
        self._view = view
        self._session = session

    async def act(self, observation: Observation) -> Reply:
        return await self._session.act(await self._view.show(observation))
