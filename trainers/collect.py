"""Stage 1, failure collection: the policy acts on the training tasks, and its failures are told from its successes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.agents import Agent
from fate_gym.agents.scripted import NOOP
from fate_gym.chat import Json
from fate_gym.episode import Episode as Rollout
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES
from fate_gym.trainers.config import CollectSettings
from fate_gym.trainers.episodes import Episode, Item, TaskPool, sample
from fate_gym.trainers.progress import Watch
from fate_gym.trainers.stages import Stage, StageFile

SCHEMA: Final = "fate-gym/train-collect/1"


def collect(
    pool: TaskPool,
    agent: Agent,
    items: Sequence[Item],
    settings: CollectSettings,
    out: Path,
    *,
    inputs: Mapping[str, Json],
    concurrency: int,
    watch: Watch,
) -> Stage:
    """Rolls out the policy; each record is an `Episode` with `failed` beside it.

    Episodes that errored are counted and left out; starting an unfinished stage again tries them anew.

    Args:
        pool: The training tasks.
        agent: The policy.
        items: Those of the pool's that are rolled out.
        settings: What a failure is.
        out: The stage file.
        inputs: What its records follow from, beside the settings.
        concurrency: Episodes under way at once.
        watch: Told of every episode.

    Raises:
        FateGymError: Not one episode could be scored.
        RunMismatchError: The file was made from other inputs.
    """
    told = {**inputs, "items": [item.key for item in items], "thresholds": list(settings.thresholds)}

    def record(item: Item, episode: Episode) -> dict[str, Json]:
        return {**episode.to_json(), "failed": failed(episode, settings.thresholds)}

    with StageFile(out, SCHEMA, told) as stage:
        if stage.finished is not None:
            return stage.finished
        errors = roll_out(stage, "collect", pool, agent, items, record, concurrency=concurrency, watch=watch)
        counts = {"errors": errors, "failed": sum(line["failed"] for line in stage.done.values()), **spent(stage)}
        return stage.finish([item.key for item in items], counts)


def roll_out(
    stage: StageFile,
    name: str,
    pool: TaskPool,
    agent: Any,
    items: Sequence[Item],
    record: Any,
    *,
    concurrency: int,
    watch: Watch,
) -> dict[str, Json]:
    """Samples what the stage does not hold yet, and keeps each scored episode as it ends.

    Args:
        stage: Open.
        name: Of the stage, for the watch.
        pool: The environments.
        agent: As in `sample`.
        items: All episodes of the stage; the key tells them apart.
        record: (item, episode) -> what is kept.
        concurrency: Episodes under way at once.
        watch: Told of every episode.

    Returns:
        How many episodes were not scored, by what went wrong.

    Raises:
        FateGymError: Not one episode could be scored.
    """
    waiting = [item for item in items if item.key not in stage.done]
    errors: Counter[str] = Counter()
    problem = ""
    means = Means()
    for line in stage.done.values():
        means.add(line["vector"], line["mask"])

    def on_done(item: Item, result: Rollout) -> None:
        nonlocal problem
        reason = unscored(result)
        if reason is None:
            kept = record(item, Episode.from_rollout(item, result))
            stage.append(kept)
            means.add(kept["vector"], kept["mask"])
        else:
            errors[result.status if result.status != "ok" else "grader_error"] += 1
            problem = reason
        watch.advance(str(means))

    with watch.stage(name, len(items), len(items) - len(waiting)):
        asyncio.run(sample(pool, agent, waiting, concurrency=concurrency, on_done=on_done))
    if items and not stage.done:
        raise FateGymError(f"not one episode of stage {name} could be scored; one of them: {problem}")
    return dict(errors)


def unscored(result: Rollout) -> str | None:
    """Says why an episode has no whole verdict, None if it has one: an axis whose grader failed compares with none."""
    if result.status != "ok":
        return result.error or result.status
    return next((f"{name}: {axis.error}" for name, axis in result.verdict.axes.items() if axis.error), None)


def failed(episode: Episode, thresholds: Sequence[float]) -> bool:
    """Whether an active axis is below its threshold (FATE, section 4.2.2)."""
    graded = zip(episode.vector, episode.mask, thresholds, strict=True)
    return any(active and value < least for value, active, least in graded)


def spent(stage: StageFile) -> dict[str, Json]:
    """What the episodes of a stage cost: tokens that the policy wrote."""
    return {"tokens": sum(sum((line["trajectory"] or {"mask": ()})["mask"]) for line in stage.done.values())}


def noop_tasks(pool: TaskPool) -> frozenset[str]:
    """Returns the clusters (user tasks) that pass by doing nothing: success there says nothing.

    One episode a cluster is played, since injections do not change what the user asked for.
    """
    first: dict[str, Item] = {}
    for item in pool.items:
        task = pool.task(item)
        first.setdefault(task.cluster, item)
    results = asyncio.run(sample(pool, NOOP, list(first.values())))
    axes = {result.cluster: result.verdict.utility for result in results}
    return frozenset(cluster for cluster, axis in axes.items() if axis.active and axis.value == 1.0)


def split_failures(stage: Stage) -> tuple[list[Episode], list[Episode]]:
    """Returns failures and successes, each in the stage's order."""
    failures: list[Episode] = []
    successes: list[Episode] = []
    for line in stage.records:
        (failures if line["failed"] else successes).append(Episode.from_json(line))
    return failures, successes


def competence(episodes: Iterable[Episode]) -> dict[str, float | None]:
    """Returns benign utility, attack success and reach over a collection, None where there is no such episode."""
    benign, attacks, reached = [], [], []
    for episode in episodes:
        if episode.mode == "benign" and episode.mask[1]:
            benign.append(episode.vector[1])
        if episode.mode == "attacked" and episode.mask[0]:
            attacks.append(1.0 - episode.vector[0])
            reached.append(float(episode.reached))
    return {"utility": _mean(benign), "ASR": _mean(attacks), "reached": _mean(reached)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Means:
    """Running means of the active axes, as a line for people."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(AXES)
        self._counts = [0] * len(AXES)

    def add(self, vector: Sequence[float], mask: Sequence[bool]) -> None:
        """Counts one episode."""
        for axis, (value, active) in enumerate(zip(vector, mask, strict=True)):
            if active:
                self._sums[axis] += value
                self._counts[axis] += 1

    def __str__(self) -> str:
        return axes_line({axis: total / n for axis, total, n in zip(AXES, self._sums, self._counts, strict=True) if n})


_SHORT: Final = dict(zip(AXES, ("sec", "util", "ref", "val"), strict=True))


def axes_line(values: Mapping[str, float | None]) -> str:
    """Axis values as one short line, such as "sec .72 util .61 ref .98 val 1.00"."""
    shown = {_SHORT[axis]: f"{value:.2f}" for axis, value in values.items() if value is not None}
    return " ".join(f"{name} {number.removeprefix('0')}" for name, number in shown.items())
