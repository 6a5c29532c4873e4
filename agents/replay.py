"""An agent that plays the recorded actions of a run again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.errors import ProviderError
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Reply, Session
from fate_gym.task import Task

_Identity = tuple[str, str | None, int]


@dataclass(frozen=True, slots=True)
class Replay:
    """Gives each task the raw actions that a run recorded for it, under the same attack and seed.

    Args:
        run: The run folder.
    """

    run: Path
    privileged: bool = False
    _actions: dict[_Identity, list[Json]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for episode in RunFolder.read(self.run).episodes():
            self._actions[episode["task_id"], episode["attack"], episode["seed"]] = episode["actions"]

    @property
    def name(self) -> str:
        """Names the run that is replayed."""
        return f"replay:{self.run.name}"

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode.

        Raises:
            ProviderError: The run has no such episode.
        """
        actions = self._actions.get((task.id, task.attack, seed))
        if actions is None:
            raise ProviderError(f"{self.run} holds no episode of {task.id} with attack {task.attack} and seed {seed}")
        return _ReplaySession(iter(actions))

    async def aclose(self) -> None:
        """Does nothing."""


class _ReplaySession:
    def __init__(self, actions: object) -> None:
        self._actions = iter(actions)  # type: ignore[call-overload]

    async def act(self, observation: Observation) -> Reply:
        for action in self._actions:
            return Reply(action)
        raise ProviderError("the recorded episode has no further action: it was recorded under another turn limit")
