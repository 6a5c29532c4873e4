"""Rollouts of a stage: sampled, and kept one by one in the stage's file."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from fate_gym.agents import Agent
from fate_gym.chat import Json
from fate_gym.episode import Episode as Rollout
from fate_gym.errors import FateGymError
from fate_gym.trainers.episodes import Episode
from fate_gym.trainers.progress import RunningMeans
from fate_gym.trainers.round import FileStage, Round
from fate_gym.trainers.stage_file import StageFile
from fate_gym.trainers.tasks import Item, sample

MakeRecord: TypeAlias = Callable[[Item, Episode], dict[str, Json]]
"""Makes the record of an episode in the stage's file."""


def roll_out(
    stage: FileStage,
    file: StageFile,
    items: Sequence[Item],
    agent: Agent | Callable[[Item], Agent],
    record: MakeRecord,
    this_round: Round,
) -> dict[str, Json]:
    """Samples the episodes that the file does not hold yet, and keeps each scored one as soon as it ends.

    Args:
        stage: The stage, for the progress.
        file: The stage's file, open.
        items: All episodes of the stage, told apart by their keys.
        agent: The agent, or a function that returns the agent of an episode.
        record: Makes the record that is kept.
        this_round: The round.

    Returns:
        How many episodes were not scored, by what went wrong.

    Raises:
        FateGymError: Not one episode could be scored.
    """
    waiting = [item for item in items if item.key not in file.done]
    errors: Counter[str] = Counter()
    problem = ""
    means = RunningMeans()
    for kept in file.done.values():
        episode = Episode.from_json(kept)
        means.add(episode.vector, episode.mask)

    def on_done(item: Item, result: Rollout) -> None:
        nonlocal problem
        reason = unscored(result)
        if reason is None:
            episode = Episode.from_rollout(item, result)
            file.append(record(item, episode))
            means.add(episode.vector, episode.mask)
        else:
            errors[result.status if result.status != "ok" else "grader_error"] += 1
            problem = reason
        this_round.progress.advance(str(means))

    with this_round.progress.stage(stage, len(items), len(items) - len(waiting)):
        asyncio.run(sample(this_round.pool, agent, waiting, concurrency=this_round.config.concurrency, on_done=on_done))
    if items and not file.done:
        raise FateGymError(f"not one episode of stage {stage} could be scored; one of them: {problem}")
    return dict(errors)


def unscored(result: Rollout) -> str | None:
    """Returns why an episode has no complete verdict, None if it has one.

    An axis whose grader failed is masked. Such an episode cannot be compared with others, so it is not kept.
    """
    if result.status != "ok":
        return result.error or result.status
    return next((f"{name}: {axis.error}" for name, axis in result.verdict.axes.items() if axis.error), None)


def policy_tokens(file: StageFile) -> int:
    """Returns the number of policy tokens in a stage's episodes: what sampling them cost."""
    return sum(Episode.from_json(record).policy_tokens for record in file.done.values())
