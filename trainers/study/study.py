"""Runs the trainings of a study, one after another, in any order and from where an earlier call stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from fate_gym.errors import FateGymError
from fate_gym.evaluation.plan import Plan
from fate_gym.trainers.base_policy import base_policy
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.gate import NotCompetentError
from fate_gym.trainers.progress import ProgressReporter
from fate_gym.trainers.study.arms import BASE
from fate_gym.trainers.study.plan import Replicate, Study
from fate_gym.trainers.study.records import Summary
from fate_gym.trainers.study.results import arm_result, base_result, is_done, write_result
from fate_gym.trainers.study.scoring import score_tests, test_sets

Train: TypeAlias = Callable[[TrainConfig, Path, Path], Summary]
"""Trains with some settings in a folder, with a shared folder, as `fate.train` does, and returns the summary."""


def run_study(
    study: Study, trainings: Sequence[tuple[Replicate, str]], out: Path, train: Train, progress: ProgressReporter
) -> list[str]:
    """Trains some of a study's trainings, and writes `out/results/REPLICATE-ARM.json` after each.

    A replicate's base policy is made, and scored, before its first training, in `out/REPLICATE`; its arms train in
    `out/REPLICATE/arms/ARM`. What has a result is not trained again, so that several calls, and machines, can share the
    work. A training that fails stops no other one.

    Args:
        study: The study.
        trainings: Replicate and arm of each, in the order in which they are trained (`Study.trainings`).
        out: The folder.
        train: Trains one arm.
        progress: Receives the progress.

    Returns:
        A line for each training that failed.
    """
    problems: dict[tuple[Replicate, str], str] = {}
    incompetent: set[Replicate] = set()
    for replicate, arm in trainings:
        if replicate in incompetent:
            continue
        config, folder = study.config(replicate, arm), out / replicate.name
        try:
            if is_done(out / "results", replicate, arm, config):
                continue
            progress.say(f"{replicate.name}: {arm}")
            _score_base(study, replicate, out, progress)
            summary = train(config, folder / "arms" / arm, folder)
            write_result(out / "results", arm_result(study, replicate, arm, config, summary))
        except NotCompetentError as error:
            # No other arm could do better: all of them start from this policy.
            incompetent.add(replicate)
            problems[replicate, arm] = str(error)
        except (FateGymError, ValueError) as error:
            problems[replicate, arm] = str(error)
    return [f"{replicate.name}, {arm}: {problem}" for (replicate, arm), problem in problems.items()]


def _score_base(study: Study, replicate: Replicate, out: Path, progress: ProgressReporter) -> None:
    """Makes the base policy of a replicate and scores it, and writes its result, unless that is done."""
    config = study.config(replicate, study.settings.arms[0])
    shared = out / replicate.name
    # A folder of its own, whose lock keeps a second process from making the same policy at the same time.
    with TrainingFolder(config, shared / "arms" / BASE, progress, shared=shared) as folder:
        rows = score_tests("before", base_policy(folder), folder)
        tasks = {
            name: list(dict.fromkeys(item.task_id for item in Plan([test], config.seed).items))
            for name, test in test_sets(folder).items()
        }
        if not is_done(out / "results", replicate, BASE, config):
            write_result(out / "results", base_result(study, replicate, config, rows, tasks))
