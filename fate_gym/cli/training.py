"""`fate-gym train`: FATE from a policy to a better one, its stages by themselves, and studies with baselines."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeRemainingColumn

from fate_gym.cli.settings import usage_errors
from fate_gym.cli.terminal import err, out
from fate_gym.errors import UsageError

if TYPE_CHECKING:
    from fate_gym.trainers.config import TrainConfig
    from fate_gym.trainers.methods import StageName
    from fate_gym.trainers.progress import ProgressReporter
    from fate_gym.trainers.study.plan import Replicate

STAGES = ("collect", "repair", "select", "warmup", "pfpo")
_STUDY, _REPORT = "study", "report"
_COMMANDS = (*STAGES, _STUDY, _REPORT)
_NAME, _WIDE = 17, 110
_PACKAGES = ("accelerate", "datasets", "matplotlib", "peft", "scipy", "torch", "transformers", "trl")
"""What the extra `train` brings."""


def add_commands(commands: Any) -> None:
    """Adds `train`."""
    parser = commands.add_parser(
        "train",
        help="train a model with FATE, or with a baseline",
        usage="fate-gym train [STAGE | study | report] --config NAME [KEY=VALUE ...] ...",
        description="Runs rounds of FATE: collect failures, repair them, choose repairs, warm up, optimise, and score. "
        f"`train STAGE` runs one stage alone: {', '.join(STAGES)}. `train study` trains FATE and its baselines at "
        "equal cost, in several replicates; `train report --config NAME --out DIR` makes the tables and pictures of a "
        "study anew from its results. Run the same command again to go on after an interruption.",
        examples=[
            "train --config fate-tiny --out runs/fate-tiny",
            "train --config fate-qwen3-0.6b --dry-run",
            "train collect --config fate-tiny --round 1",
        ],
    )
    parser.set_defaults(run=run, resumable=True)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="STAGE | study | report | KEY=VALUE",
        help="What to run, if not a whole training; settings that override the file.",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="A YAML file of settings, or the name of a configuration that ships with the package.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="The training folder (default: runs/NAME).")
    parser.add_argument(
        "--round", type=int, default=1, metavar="N", help="The round of a stage that runs alone (default: 1)."
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="The arms that `study` trains (default: all).")
    parser.add_argument(
        "--replicates", nargs="+", type=int, metavar="N", help="The replicates that it trains, from 1 (default: all)."
    )
    parser.add_argument("--json", action="store_true", help="Print the summary as JSON.")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print the resolved settings, run every stage once on a tiny random model, and stop.",
    )


def run(options: argparse.Namespace) -> int:
    """Trains, or runs one stage."""
    from fate_gym.trainers.config import read_config

    command, overrides = _command(options.settings)
    if command == _REPORT:
        return _report(options, _folder(options))
    if options.config is None:
        raise UsageError("give the settings: --config NAME, a YAML file or a configuration that ships with the package")
    folder = _folder(options)
    if command == _STUDY:
        return _study(options, overrides, folder)
    with usage_errors():
        config = read_config(options.config, overrides)
    _require_packages()
    if options.dry_run:
        return _dry_run(config)
    return _stage(config, command, options, folder) if command else _train(config, options, folder)


def _require_packages() -> None:
    """Checks, before anything is printed or made, that the extra is installed; no package is imported for it.

    Raises:
        UsageError: One is missing.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"training needs {name}: pip install 'fate-gym[train]'")


def _folder(options: argparse.Namespace) -> Path:
    if options.out is None and options.config is None:
        raise UsageError("give the folder of the study: --out DIR")
    return options.out or Path("runs") / Path(options.config).stem


def _command(settings: list[str]) -> tuple[str | None, list[str]]:
    """Tells the stage, or what else is to be run, from the overrides."""
    words = [word for word in settings if "=" not in word]
    unknown = [word for word in words if word not in _COMMANDS]
    if unknown or len(words) > 1:
        known = ", ".join(_COMMANDS)
        raise UsageError(f"{' '.join(unknown or words)}: give one of {known}, or none; settings are KEY=VALUE")
    return (words[0] if words else None), [text for text in settings if "=" in text]


def _train(config: TrainConfig, options: argparse.Namespace, folder: Path) -> int:
    from fate_gym.trainers.fate import train
    from fate_gym.trainers.gate import NotCompetentError
    from fate_gym.trainers.processes import is_first_process

    _quiet()
    try:
        with _Bars() as progress, usage_errors():
            summary = train(config, folder, progress=progress)
    except NotCompetentError as error:
        err.line(f"fate-gym: {error}")
        return 1
    if is_first_process():
        _print(summary, folder, as_json=options.json)
    return 0


def _stage(config: TrainConfig, stage: str, options: argparse.Namespace, folder: Path) -> int:
    from fate_gym.trainers.folder import TrainingFolder
    from fate_gym.trainers.processes import is_first_process
    from fate_gym.trainers.single_stage import run_stage

    if options.round < 1:
        raise UsageError(f"--round counts from 1, got {options.round}")
    _quiet()
    with _Bars() as progress, usage_errors(), TrainingFolder(config, folder, progress) as training:
        counts = run_stage(cast("StageName", stage), options.round, training)
    if not is_first_process():
        return 0
    if counts is None:
        err.line(f"Method {config.method} has no stage {stage} with these settings and results.")
        return 0
    if options.json:
        out.json(counts)
    else:
        out.text(_yaml(counts))
    return 0


def _study(options: argparse.Namespace, overrides: list[str], folder: Path) -> int:
    from fate_gym.trainers.fate import train
    from fate_gym.trainers.processes import process_count
    from fate_gym.trainers.study.plan import read_study
    from fate_gym.trainers.study.study import run_study

    if process_count() > 1:
        raise UsageError("a study runs in one process: `train` alone, with the settings of --dry-run, runs in several")

    with usage_errors():
        study = read_study(options.config, overrides)
        trainings = study.trainings(_chosen(study.settings.replicates, options.replicates), options.arms or ())
    if options.dry_run:
        out.text(_yaml({f"{one.name} {arm}": study.config(one, arm).to_json() for one, arm in trainings}))
        return 0
    _require_packages()
    _quiet()
    with _Bars() as progress:

        def train_arm(config: TrainConfig, arm_folder: Path, shared: Path) -> dict[str, Any]:
            return train(config, arm_folder, progress=progress, shared=shared)

        problems = run_study(study, trainings, folder, train_arm, progress)
    for problem in problems:
        err.text(f"fate-gym: {problem}")
    if len(problems) < len(trainings):
        _report(options, folder)
    return int(bool(problems))


def _chosen(replicates: Sequence[Replicate], numbers: Sequence[int] | None) -> list[Replicate]:
    """The replicates with some numbers, which count from 1; all of them without numbers."""
    for number in numbers or ():
        if not 1 <= number <= len(replicates):
            raise ValueError(f"--replicates {number}: the study has replicates 1 to {len(replicates)}")
    return [replicates[number - 1] for number in numbers or range(1, len(replicates) + 1)]


def _report(options: argparse.Namespace, folder: Path) -> int:
    from fate_gym.trainers.study.plan import read_study
    from fate_gym.trainers.study.publish import publish
    from fate_gym.trainers.study.report_text import terminal_tables

    with usage_errors():
        hypotheses = read_study(options.config).settings.hypotheses if options.config else ()
    report = publish(folder, hypotheses)
    if options.json:
        out.json(report)
    else:
        for table in terminal_tables(report):
            out.table(table)
    return 0


def _dry_run(config: TrainConfig) -> int:
    from fate_gym.trainers.processes import is_first_process
    from fate_gym.trainers.rehearsal import rehearse

    if is_first_process():
        out.text(_yaml(config.to_json()))
    _quiet()
    with _Bars() as progress, usage_errors():
        report = rehearse(config, progress=progress)
    if is_first_process():
        err.text("\n".join(["Rehearsed on a tiny random model:", *report]))
    return 0


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False)).rstrip("\n")


def _quiet() -> None:
    """Silences what libraries say of themselves: it would break the bars, and is no news to the user."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)


def _print(summary: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        out.json(summary)
        return
    from fate_gym.trainers.study.tables import notes, results_table

    out.table(results_table(summary))
    out.prose(notes(summary, folder))


class _Bars:
    """Progress bars with rate and remaining time, a stage each, and the axes so far; fits 80 columns."""

    def __init__(self) -> None:
        bars = [BarColumn(20)] if err.width >= _WIDE else []
        self._bar = err.progress(
            "{task.description:<17}",
            *bars,
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            "{task.fields[rate]:>6} {task.fields[note]}",
        )
        self._held = contextlib.ExitStack()
        self._task: TaskID | None = None
        self._started = 0.0
        self._count = 0

    def __enter__(self) -> ProgressReporter:
        from fate_gym.trainers.progress import ProgressReporter

        bars = self

        class Drawn(ProgressReporter):
            def begin(self, stage: str, total: int, done: int = 0) -> None:
                bars.begin(stage, total, done)

            def advance(self, note: str = "") -> None:
                bars.advance(note)

            def end(self) -> None:
                bars.end()

            def say(self, line: str) -> None:
                bars.say(line)

        # Libraries print too (DeepSpeed logs on standard output), which would stand before the summary's JSON.
        self._held.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._held.enter_context(self._bar)
        return Drawn()

    def __exit__(self, *exit_info: Any) -> None:
        self._held.close()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Adds a bar."""
        title = stage if len(stage) <= _NAME else f"{stage[: _NAME - 3]}..."
        self._task = self._bar.add_task(title, total=total or None, completed=done, rate="", note="")
        self._started, self._count = time.monotonic(), 0

    def advance(self, note: str) -> None:
        """Moves the last bar by one."""
        if self._task is not None:
            self._count += 1
            per_minute = 60 * self._count / max(time.monotonic() - self._started, 1e-3)
            self._bar.update(self._task, advance=1, rate=f"{per_minute:.0f}/m", note=note)

    def end(self) -> None:
        """Lets the last bar stand as it is."""
        if self._task is not None:
            task = next(task for task in self._bar.tasks if task.id == self._task)
            if task.total is None:
                self._bar.update(self._task, total=task.completed)
            self._bar.stop_task(self._task)
            self._task = None

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        err.line(line)
