"""Scores of a policy on the dev and test sets, through the same `run_evaluation` that `fate-gym eval` runs."""

from __future__ import annotations

import asyncio
import dataclasses
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from fate_gym.agents import Agent
from fate_gym.episode import Episode
from fate_gym.errors import FateGymError, RunError
from fate_gym.evaluation import EvalConfig, RunFolder, load_run, run_evaluation
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.metrics import earned_utility, find
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.pareto import hypervolume
from fate_gym.storage import encode_line, make_folder, read_object, replace_file
from fate_gym.trainers.base_policy import cloned_pairs
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.processes import first_alone, is_first_process
from fate_gym.trainers.progress import ProgressReporter, RunningMeans
from fate_gym.trainers.study.records import Row
from fate_gym.trainers.tasks import idle_tasks

SCORED: Final = (
    ("attacked", "ASR"),
    ("attacked", "TSR"),
    ("benign", "BRR"),
    ("benign", "earned_utility"),
    (None, "validity"),
    ("attacked", "reached"),
    ("harmful", "harm_score"),
)
"""The metrics of a row in their order, each with the mode of its episodes; None for all."""


def score_dev(number: int, policy: str, folder: TrainingFolder) -> Row:
    """Returns the dev row of the policy that a round ended with, with `hypervolume`; round 0 is the base policy."""
    config = folder.config
    dev = dataclasses.replace(config.evaluate.dev, exclude=(*config.evaluate.dev.exclude, *config.excluded_tasks))
    out = folder.out if number else folder.shared
    row = _score(policy, dev, out / "eval" / f"dev-{number}", folder)
    row["hypervolume"] = {"value": volume(row)}
    if number and is_first_process():
        make_folder(folder.out / f"round-{number}")
        replace_file(folder.out / f"round-{number}" / "dev.json", encode_line(row))
    return row


def score_tests(when: Literal["before", "after"], policy: str, folder: TrainingFolder) -> dict[str, Row]:
    """Returns the row of a policy on every test set."""
    out = folder.shared if when == "before" else folder.out
    return {
        name: _score(policy, test, out / "eval" / f"{when}-{name.replace('/', '-')}", folder)
        for name, test in test_sets(folder).items()
    }


def test_sets(folder: TrainingFolder) -> dict[str, TaskSet]:
    """Returns the test sets by name, without the pairs that the base policy was cloned on.

    A pair that it was cloned on would be remembered, not generalised to.
    """
    config = folder.config
    left_out = (*config.excluded_tasks, *cloned_pairs(folder))
    return {
        name: dataclasses.replace(test, exclude=(*test.exclude, *left_out))
        for name, test in config.evaluate.test.items()
    }


def _score(policy: str, task_set: TaskSet, out: Path, folder: TrainingFolder) -> Row:
    """Evaluates a policy on a task set, and returns its row.

    Args:
        policy: The weights.
        task_set: The tasks.
        out: The run folder; one that holds a part of the same run is completed.
        folder: The training.

    Returns:
        The metrics of `SCORED`, each with `value`, `low`, `high` and `n`; `n`, the number of scored episodes;
        `errors`. A metric without episodes is missing.

    Raises:
        FateGymError: Not one episode could be scored.
    """
    settings = folder.config
    plan = Plan([task_set], settings.seed)
    config = EvalConfig(
        agent=f"hf:{policy}",
        agent_args={**settings.agent, "temperature": settings.evaluate.temperature},
        env=task_set.env,
        attack=task_set.attack and tuple(None if attack == "none" else attack for attack in task_set.attack),
        env_args=task_set.env_args,
        # The very tasks: what was left out may follow from the base policy, which the run's manifest does not know.
        tasks=tuple(dict.fromkeys(glob.escape(item.task_id) for item in plan.items)),
        seed=settings.seed,
        repeats=task_set.repeats,
        concurrency=settings.concurrency,
        out=out,
    )
    with folder.timed("score"), first_alone():
        # A finished run is only read: loading the model takes longer than all the rest.
        if is_first_process() and not _is_complete(out, len(plan.items)):
            agent = folder.sampler.agent(policy, **config.agent_args)
            asyncio.run(_evaluate(config, plan, agent, folder.progress))
        run = load_run(out)
        row = metrics(run.episodes, idle_tasks(plan))
        row["errors"] = len(run.failures)
    if not row["n"]:
        problem = next((failure.error for failure in run.failures), "no task")
        raise FateGymError(f"not one episode of {out} could be scored; one of them: {problem}")
    return row


def _is_complete(out: Path, planned: int) -> bool:
    """Whether a run is finished, so that its model need not be loaded; a damaged summary is written again."""
    try:
        episodes = read_object(out / "summary.json").object("episodes").values
    except RunError:
        return False
    return episodes.get("scored") == episodes.get("planned") == planned


async def _evaluate(config: EvalConfig, plan: Plan, agent: Agent, progress: ProgressReporter) -> None:
    done = len(RunFolder.read(config.out).done) if (config.out / "manifest.json").exists() else 0
    means = RunningMeans()

    def on_done(finished: Finished) -> None:
        means.add(*zip(*finished.result.axes, strict=True))
        progress.advance(str(means))

    try:
        with progress.stage(config.out.name, len(plan.items), done):
            await run_evaluation(config, agent, plan=plan, on_done=on_done)
    finally:
        await agent.aclose()


def metrics(episodes: Iterable[Episode], idle: frozenset[str]) -> Row:
    """Computes a row from the scored episodes of a run.

    Args:
        episodes: The episodes.
        idle: Clusters that an agent passes by doing nothing; they are left out of `earned_utility` alone.
    """
    scored = list(episodes)
    row: Row = {"n": len(scored)}
    for mode, name in SCORED:
        # Validity asks the same of every mode, so any mode's definition will do.
        metric = earned_utility(idle) if name == "earned_utility" else find(mode or "benign", name)
        values = metric.values(episode for episode in scored if mode in (None, episode.mode))
        if values:
            estimate = metric.estimate(values)
            row[name] = {part: getattr(estimate, part) for part in ("value", "low", "high", "n")}
    return row


def volume(row: Row) -> float:
    """Returns the hypervolume by which rounds are compared.

    Its axes are 1 - ASR, TSR and 1 - BRR, those of them that the row has; without any of them, 1 - harm score.
    """
    names: list[str] = [name for name in ("ASR", "TSR", "BRR") if name in row]
    if not names and "harm_score" in row:
        names = ["harm_score"]
    point = [row[name]["value"] if name == "TSR" else 1.0 - row[name]["value"] for name in names]
    return hypervolume([point]) if point else 0.0
