"""An agent that plays recorded episodes again."""

from __future__ import annotations

from pathlib import Path

from fate_gym.agents.scripted import ScriptedAgent
from fate_gym.errors import ProviderError
from fate_gym.evaluation.replaying import Recording
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Session
from fate_gym.task import Task


class Replay(ScriptedAgent):
    """Plays the scored episodes of a run again, each for its task, attack and seed.

    Args:
        run: The run folder.

    Raises:
        RunError: It is not a run folder.
    """

    def __init__(self, run: Path) -> None:
        self.name = f"replay:{run.name}"
        self._run = run
        self._recordings: dict[tuple[str, str | None, int], Recording] = {
            (episode.task_id, episode.attack, episode.seed): Recording.of(episode)
            for episode in RunFolder(run).episodes()
        }

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode.

        Raises:
            ProviderError: The run has no such episode.
        """
        recording = self._recordings.get((task.id, task.attack, seed))
        if recording is None:
            raise ProviderError(f"{self._run} holds no {task.id} with attack {task.attack} and seed {seed}")
        return recording.start(task, seed)
