"""Rollouts of a stage: sampled, and kept one by one in the stage's file."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from fate_gym.agents import Agent
from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.errors import FateGymError
from fate_gym.evaluation.plan import Item
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.workers import InProcess
from fate_gym.storage import Fields
from fate_gym.trainers.episodes import mask, policy_tokens, read_episode, vector
from fate_gym.trainers.progress import RunningMeans
from fate_gym.trainers.round import FileStage, Round
from fate_gym.trainers.stage_file import StageFile

MakeRecord: TypeAlias = Callable[[Episode], dict[str, Json]]
"""Makes the record of an episode in the stage's file."""

_FIRST_CHUNK: Final = 16
"""Episodes that a stage with a limit of tokens begins with, when it does not know yet how long they are."""

OWN_FIELDS = ("failed", "failure")
"""Fields in which stages say more of an episode than it says itself."""


def roll_out(
    stage: FileStage,
    file: StageFile,
    items: Sequence[Item],
    agent: Agent | Callable[[Item], Agent],
    record: MakeRecord,
    this_round: Round,
) -> dict[str, Json]:
    """Samples the episodes that the file does not hold yet, and keeps each scored one as soon as it ends.

    Where a budget limits the stage (`Round.tokens_for`), only so many of the episodes are sampled, from the first on.

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
    errors: Counter[str] = Counter()
    problem = ""
    means = RunningMeans()
    for kept in file.done.values():
        earlier = read_episode(kept, *OWN_FIELDS)
        means.add(vector(earlier), mask(earlier))

    async def keep(item: Item, episode: Episode) -> None:
        nonlocal problem
        reason = unscored(episode)
        if reason is None:
            file.append(record(episode))
            means.add(vector(episode), mask(episode))
        else:
            errors[episode.status if episode.status != "ok" else "grader_error"] += 1
            problem = reason
        this_round.progress.advance(str(means))

    concurrency, tokens = this_round.config.concurrency, this_round.tokens_for(stage)
    total = len(items) if tokens is None else 0
    workers = InProcess(Player(this_round.plan.environments, agent, lambda episode: episode))
    with this_round.progress.stage(stage, total, len(file.done)):
        for chunk in [items] if tokens is None else within(tokens, items, file, concurrency):
            waiting = [item for item in chunk if item.key not in file.done]
            asyncio.run(run_episodes(waiting, workers, concurrency=concurrency, on_done=keep))
    if items and not file.done and tokens != 0:
        raise FateGymError(f"not one episode of stage {stage} could be scored; one of them: {problem}")
    return dict(errors)


def within(tokens: int, items: Sequence[Item], file: StageFile, size: int) -> Iterator[Sequence[Item]]:
    """Yields the items in chunks until their episodes hold so many policy tokens; each must be played before the next.

    What is yielded follows from the episodes of earlier chunks alone, so that a resumed stage samples the same ones.

    Args:
        tokens: The limit. It is missed by the length of a few episodes: the last chunk is as long as their mean says.
        items: The episodes.
        file: Holds the episodes that have been played.
        size: Most items in a chunk.
    """
    spent = start = 0
    while start < len(items) and spent < tokens:
        likely = round((tokens - spent) * start / spent) if spent else _FIRST_CHUNK
        chunk = items[start : start + min(size, max(1, likely))]
        yield chunk
        spent += sum(_tokens_of(file.done[item.key]) for item in chunk if item.key in file.done)
        start += len(chunk)


def unscored(episode: Episode) -> str | None:
    """Returns why an episode has no complete verdict, None if it has one.

    An axis whose grader failed is masked. Such an episode cannot be compared with others, so it is not kept.
    """
    if episode.status != "ok":
        return episode.error or episode.status
    return next((f"{name}: {axis.error}" for name, axis in episode.verdict.axes.items() if axis.error), None)


def tokens_in(file: StageFile) -> int:
    """Returns the number of policy tokens in a stage's episodes: what sampling them cost."""
    return sum(map(_tokens_of, file.done.values()))


def _tokens_of(record: Fields) -> int:
    return policy_tokens(read_episode(record, *OWN_FIELDS))
