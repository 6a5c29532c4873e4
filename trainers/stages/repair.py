"""Stage 2, repair proposals: the same policy tries each failed task again, told how it failed; every try is executed.

A candidate is a whole episode in a fresh environment, the same world as the failure's: only the user's first message
is p_f in place of the task, and the sampling seed is its own. So the verifiers judge what the candidate really did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from fate_gym.agents import Agent
from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.rollout import Reply, Session
from fate_gym.task import Task
from fate_gym.trainers.collect import roll_out, spent
from fate_gym.trainers.config import RepairSettings
from fate_gym.trainers.episodes import Episode, Item, TaskPool
from fate_gym.trainers.progress import Watch
from fate_gym.trainers.prompts import repair_prompt
from fate_gym.trainers.stages import Stage, StageFile

SCHEMA: Final = "fate-gym/train-repair/1"


class Reattempt(Agent):
    """An agent that reads another first user message than the environment shows, and samples by a seed of its own.

    Args:
        agent: Who acts.
        prompt: What it reads in place of the user's first message; None to leave it.
        seed: Of its session, in place of the episode's.
    """

    def __init__(self, agent: Agent, prompt: str | None, seed: int) -> None:
        self.name = agent.name
        self._agent, self._prompt, self._seed = agent, prompt, seed

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        session = self._agent.start(task, self._seed)
        return session if self._prompt is None else _Prompted(session, self._prompt)


class _Prompted:
    def __init__(self, session: Session, prompt: str) -> None:
        self._session, self._prompt = session, prompt

    async def act(self, observation: Observation) -> Reply:
        messages = list(observation["messages"])
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[first] = {**messages[first], "content": self._prompt}
        return await self._session.act({**observation, "messages": messages})


def repair(
    pool: TaskPool,
    agent: Agent,
    failures: Sequence[Episode],
    settings: RepairSettings,
    out: Path,
    *,
    inputs: Mapping[str, Json],
    concurrency: int,
    watch: Watch,
) -> Stage:
    """Samples K candidates for each failure; each record is an `Episode` with `failure`, the failed one's key.

    Args:
        pool: The training tasks.
        agent: The policy.
        failures: What to repair.
        settings: How.
        out: The stage file.
        inputs: What its records follow from, beside the settings.
        concurrency: Episodes under way at once.
        watch: Told of every episode.

    Raises:
        FateGymError: Not one candidate could be scored.
        RunMismatchError: The file was made from other inputs.
    """
    of_item = {f"{failure.key}~{k}": failure for failure in failures for k in range(settings.candidates)}
    items = [replace(failure.item, key=key) for key, failure in of_item.items()]
    prompts = {failure.key: repair_prompt(failure, settings.show) for failure in failures}

    def actor(item: Item) -> Agent:
        prompt = prompts[of_item[item.key].key] if settings.prompt == "p_f" else None
        return Reattempt(agent, prompt, _seed(item))

    def record(item: Item, episode: Episode) -> dict[str, Json]:
        failure = of_item[item.key]
        return {**replace(episode, x_ids=failure.x_ids).to_json(), "failure": failure.key}

    with StageFile(out, SCHEMA, {**inputs, **asdict(settings)}) as stage:
        if stage.finished is not None:
            return stage.finished
        errors = roll_out(stage, "repair", pool, actor, items, record, concurrency=concurrency, watch=watch)
        counts = {"errors": errors, "failures": len(failures), **spent(stage)}
        return stage.finish([item.key for item in items], counts)


def _seed(item: Item) -> int:
    """A candidate's own sampling seed: the failure's with the candidate's key."""
    return int.from_bytes(hashlib.sha256(f"{item.seed}/{item.key}".encode()).digest()[:4], "big") >> 1
