"""An agent that plays the recorded actions of a run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.errors import ProviderError
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

_Identity = tuple[str, str | None, int]


class Replay(Agent):
    """Gives each task the raw actions that a run recorded for it, under the same attack and seed.

    Args:
        run: The run folder.

    Raises:
        RunError: It is none.
    """

    def __init__(self, run: Path) -> None:
        self.name = f"replay:{run.name}"
        self._run = run
        self._actions: dict[tuple[str, str | None, int], list[Json]] = {
            (episode.task_id, episode.attack, episode.seed): episode.actions
            for episode in RunFolder.read(run).episodes()
        }

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode.

        Raises:
            ProviderError: The run has no such episode.
        """
        actions = self._actions.get((task.id, task.attack, seed))
        if actions is None:
            raise ProviderError(f"{self._run} holds no {task.id} with attack {task.attack} and seed {seed}")
        return _ReplaySession(iter(actions))


@dataclass(frozen=True, slots=True)
class _ReplaySession:
    actions: Iterator[Json]

    async def act(self, observation: Observation) -> Reply:
        for action in self.actions:
            return Reply(action)
        raise ProviderError("the recorded episode has no further action: it was recorded under another turn limit")
