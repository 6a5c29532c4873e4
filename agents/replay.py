"""An agent that plays recorded episodes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fate_gym.agents.scripted import ScriptedAgent
from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.episode import Episode
from fate_gym.errors import ContextOverflowError, EndlessReplyError, NoReplyError, ProviderError
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Reply, Session
from fate_gym.task import Task


class Recording(ScriptedAgent):
    """Plays one recorded episode again, whatever the task.

    Args:
        episode: The episode.
    """

    name = "recording"

    def __init__(self, episode: Episode) -> None:
        self._actions, self._end = episode.actions, _end(episode)

    def start(self, task: Task, seed: int) -> Session:
        """Begins at the first action."""
        return _ReplaySession(iter(self._actions), self._end)


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
            (episode.task_id, episode.attack, episode.seed): Recording(episode)
            for episode in RunFolder.read(run).episodes()
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


@dataclass(frozen=True, slots=True)
class _ReplaySession:
    actions: Iterator[Json]
    end: NoReplyError

    async def act(self, observation: Observation) -> Reply:
        for action in self.actions:
            return Reply(action)
        raise self.end


def _end(episode: Episode) -> NoReplyError:
    """Returns what the recorded agent did after its last action, where the episode was not over then."""
    if episode.ended == "context_overflow":
        return ContextOverflowError("recorded")
    if episode.ended == "endless_reply":
        return EndlessReplyError("recorded")
    return ProviderError(episode.error or "the recorded episode has no further action: its turn limit was another")
