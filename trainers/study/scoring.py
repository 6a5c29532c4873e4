"""Scores of a policy on the dev and test sets, through the same `evaluate` that `fate-gym eval` runs."""

from __future__ import annotations

import asyncio
import dataclasses
import glob
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from fate_gym.agents import load_agent
from fate_gym.episode import Episode
from fate_gym.errors import FateGymError
from fate_gym.evaluation import EvalConfig, RunFolder, evaluate
from fate_gym.evaluation.metrics import earned_utility, find
from fate_gym.pareto import hypervolume
from fate_gym.storage import encode_line, make_folder, replace_file
from fate_gym.trainers.base_policy import cloned_pairs
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.progress import ProgressReporter, RunningMeans
from fate_gym.trainers.tasks import TaskPool, TaskSet, noop_tasks

Row = dict[str, Any]


def score_dev(number: int, policy: str, folder: TrainingFolder) -> Row:
    """Returns the dev row of the policy that a round ended with, with `hypervolume`; round 0 is the base policy."""
    config = folder.config
    dev = dataclasses.replace(config.evaluate.dev, exclude=(*config.evaluate.dev.exclude, *config.excluded_tasks))
    out = folder.out if number else folder.shared
    row = _score(policy, dev, out / "eval" / f"dev-{number}", folder)
    row["hypervolume"] = {"value": volume(row)}
    if number:
        make_folder(folder.out / f"round-{number}")
        replace_file(folder.out / f"round-{number}" / "dev.json", encode_line(row))
    return row


def score_tests(when: Literal["before", "after"], policy: str, folder: TrainingFolder) -> dict[str, Row]:
    """Returns the row of a policy on every test set, without the pairs that the tiny base policy was cloned on."""
    config = folder.config
    out = folder.shared if when == "before" else folder.out
    rows = {}
    for name, test in config.evaluate.test.items():
        exclude = (*test.exclude, *config.excluded_tasks, *cloned_pairs(folder))
        path = out / "eval" / f"{when}-{name.replace('/', '-')}"
        rows[name] = _score(policy, dataclasses.replace(test, exclude=exclude), path, folder)
    return rows


def _score(policy: str, task_set: TaskSet, out: Path, folder: TrainingFolder) -> Row:
    config = folder.config
    with folder.timed("score"):
        return score(
            policy,
            task_set,
            out,
            agent=config.agent,
            temperature=config.evaluate.temperature,
            seed=config.seed,
            concurrency=config.concurrency,
            progress=folder.progress,
        )


def score(
    policy: str | Path,
    task_set: TaskSet,
    out: Path,
    *,
    agent: Mapping[str, Any],
    temperature: float,
    seed: int,
    concurrency: int,
    progress: ProgressReporter,
) -> Row:
    """Evaluates a policy on a task set, and returns its row.

    Args:
        policy: A folder, or an id on the hub.
        task_set: The tasks.
        out: The run folder; one that holds a part of the same run is completed.
        agent: Options of the policy as an agent.
        temperature: Of sampling; 0 for greedy decoding.
        seed: Of the run.
        concurrency: Episodes under way at once.
        progress: Receives the progress.

    Returns:
        ASR, TSR, BRR, utility, validity and reached, each with `value`, `low`, `high` and `n`; `n`, the scored
        episodes; `errors`. Utility leaves out the tasks that doing nothing passes. A metric without episodes is
        missing.

    Raises:
        FateGymError: Not one episode could be scored.
    """
    pool = TaskPool([task_set], seed, purpose="evaluation")
    config = EvalConfig(
        agent=f"hf:{policy}",
        agent_args={**agent, "temperature": temperature},
        env=task_set.env,
        attack=task_set.attack and tuple(None if attack == "none" else attack for attack in task_set.attack),
        env_args=task_set.env_args,
        tasks=tuple(dict.fromkeys(glob.escape(item.task_id) for item in pool.items)),
        seed=seed,
        repeats=task_set.repeats,
        concurrency=concurrency,
        out=out,
    )
    if not _complete(out, len(pool.items)):
        asyncio.run(_evaluate(config, progress, len(pool.items)))
    folder = RunFolder.read(out)
    summary = folder.summary()
    row = metrics(folder.episodes(), noop_tasks(pool))
    row["errors"] = summary["episodes"]["errors"]
    if not row["n"]:
        problem = next((failure.error for failure in folder.failures()), "no task")
        raise FateGymError(f"not one episode of {out} could be scored; one of them: {problem}")
    return row


def _complete(out: Path, planned: int) -> bool:
    """Whether a run is there and over, so that its model need not be loaded."""
    try:
        found = json.loads((out / "summary.json").read_bytes())["episodes"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(found["scored"] == found["planned"] == planned)


async def _evaluate(config: EvalConfig, progress: ProgressReporter, total: int) -> None:
    done = len(RunFolder.read(config.out).done) if (config.out / "manifest.json").exists() else 0
    agent = load_agent(config.agent, **config.agent_args)
    means = RunningMeans()

    def on_done(result: Episode) -> None:
        means.add(result.verdict.vector.tolist(), result.verdict.mask.tolist())
        progress.advance(str(means))

    try:
        with progress.stage(config.out.name, total, done):
            await evaluate(config, agent, on_done=on_done)
    finally:
        await agent.aclose()


def metrics(episodes: Iterable[Episode], noop: frozenset[str]) -> Row:
    """Computes a row from stored episodes.

    Args:
        episodes: Scored ones.
        noop: Clusters that doing nothing passes; they are left out of utility alone.
    """
    scored = list(episodes)
    row: Row = {"n": len(scored)}
    for name, mode, metric in (
        *((name, "attacked", find("attacked", name)) for name in ("ASR", "TSR")),
        ("BRR", "benign", find("benign", "BRR")),
        ("utility", "benign", earned_utility(noop)),
        # Validity asks the same of every mode.
        ("validity", None, find("benign", "validity")),
        ("reached", "attacked", find("attacked", "reached")),
        ("harm", "harmful", find("harmful", "harm_score")),
    ):
        values = metric.values(episode for episode in scored if mode in (None, episode.mode))
        if values:
            estimate = metric.estimate(values)
            row[name] = {part: getattr(estimate, part) for part in ("value", "low", "high", "n")}
    return row


def volume(row: Mapping[str, Any]) -> float:
    """Returns the hypervolume of (1 - ASR, TSR, 1 - BRR), of those that the row has: what rounds are chosen by."""
    known = {name: row[name]["value"] for name in ("ASR", "TSR", "BRR") if name in row}
    if not known:
        known = {name: row[name]["value"] for name in ("harm",) if name in row}
    point = [value if name == "TSR" else 1.0 - value for name, value in known.items()]
    return hypervolume([point]) if point else 0.0
