"""`fate-gym show`: a run's results, or one of its episodes as a person reads it."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fate_gym.cli.terminal import out
from fate_gym.episode import Episode
from fate_gym.errors import RunError, UsageError, unknown
from fate_gym.evaluation.report import notes, remarks, results_tables
from fate_gym.evaluation.results import Result
from fate_gym.evaluation.run import Episodes, Run, load_run
from fate_gym.evaluation.summary import ALL
from fate_gym.rendering import EpisodeView
from fate_gym.rewards import AXES

_LISTED = 10
"""Episodes that are listed below a table; more would move it out of the window."""
_FILTERS = ("suite", "attack", "task", "failed")


def add_commands(commands: Any) -> None:
    """Adds `show`."""
    parser = commands.add_parser(
        "show",
        help="show the results of a run, or one of its episodes",
        description="Shows the results of a run and its episodes below a perfect score, or one episode in full. Of a "
        "folder of several runs it shows how far each has come.",
        examples=[
            "show runs",
            "show runs/demo/gullible --failed security --suite banking",
            "show runs/demo/gullible user_task_3/injection_task_5",
        ],
    )
    parser.set_defaults(run=run)
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="The run folder, or a folder of several.")
    parser.add_argument("episode", metavar="EPISODE", nargs="?", help="An episode's key, or a part that only it has.")
    parser.add_argument(
        "--single-file",
        metavar="FILE",
        type=Path,
        help="Write the episode as one page that opens in a browser, and can be sent by mail.",
    )
    parser.add_argument("--private", action="store_true", help="Show in it what the licence does not allow to publish.")
    parser.add_argument("--all", action="store_true", help="List every episode, not only those below a perfect score.")
    group = parser.add_argument_group("filters")
    group.add_argument("--suite", metavar="NAME", help="List only episodes of this suite.")
    group.add_argument("--attack", metavar="NAME", help="List only episodes under this attack; `none` for no attack.")
    group.add_argument(
        "--task", metavar="PATTERN", help="List only episodes of tasks whose ids match, such as '*/injection_task_3'."
    )
    group.add_argument(
        "--failed", metavar="AXIS", choices=AXES, help=f"List only episodes that lost on this axis: {', '.join(AXES)}."
    )


def run(options: argparse.Namespace) -> int:
    """Shows a run, an episode, or which runs a folder holds."""
    path: Path = options.run_folder
    runs = [] if (path / "manifest.json").exists() else sorted(file.parent for file in path.glob("*/manifest.json"))
    chosen = [f"--{name}" for name in _FILTERS if getattr(options, name) is not None]
    if runs:
        if chosen or options.episode:
            raise UsageError(f"{path} holds several runs: name one of them, such as {runs[0]}")
        out.entries((str(run_folder), _described(run_folder)) for run_folder in runs)
        return 0
    run = load_run(path)
    if options.episode is not None and chosen:
        raise UsageError(f"one episode is shown whole: leave out {', '.join(chosen)}, or the episode")
    if options.episode is None:
        if options.single_file is not None:
            raise UsageError("--single-file writes one episode: name it after the run")
        _check_filters(run, options)
        _show_run(run, options)
    elif options.single_file is not None:
        _write_episode(run, options)
    else:
        out.text(EpisodeView.of(run.episode(options.episode)).to_text())
    return 0


def _write_episode(run: Run, options: argparse.Namespace) -> None:
    from fate_gym.leaderboards.site import trace_file

    page = trace_file(run, run.episode(options.episode), private=options.private)
    options.single_file.write_text(page, encoding="utf-8", newline="")
    out.line(str(options.single_file))


def _described(path: Path) -> str:
    try:
        return _line_of(load_run(path))
    except RunError as error:
        return f"cannot be shown: {error}"


def _line_of(run: Run) -> str:
    counts = run.summary["episodes"]
    planned = "an unknown number of" if counts["planned"] is None else counts["planned"]
    return f"{run.summary['agent']} on {run.summary['env']}: {counts['scored']} of {planned} episodes scored"


def _show_run(run: Run, options: argparse.Namespace) -> None:
    out.line(_line_of(run))
    if run.origin is not None:
        out.prose(f"imported from {run.origin}. Unknown: {'; '.join(run.origin.unknown)}.")
    for table in results_tables([run.summary], by_suite=True):
        out.table(table)
    out.prose(notes([run.summary]))
    for remark in remarks(run):
        out.line(remark)
    every = options.all or options.failed
    episodes = _chosen(run.episodes, lambda result: _is_listed(result, options))
    which = "" if every else " below a perfect score"
    _print_some(f"episodes{which} (in parentheses: how each ended)", episodes, _values, every=options.all)
    failures = _chosen(run.failures, lambda result: _matches(result, options))
    if failures:
        _print_some("episodes that ended in an error", failures, _error, every=options.all)


def _check_filters(run: Run, options: argparse.Namespace) -> None:
    """Refuses a name that no episode has: an empty list would look like good news."""
    for name in ("suite", "attack"):
        given = getattr(options, name)
        known = {group[name] or "none" for group in run.summary["groups"]} - {ALL}
        if given is not None and given not in known:
            raise UsageError(unknown(f"{name} of this run", given, sorted(known)))
    keys = chain(run.episodes.each_key(), run.failures.each_key())
    tasks = {key.partition("/")[2].rpartition("#")[0] for key in keys}
    if options.task is not None and not any(fnmatch.fnmatchcase(task, options.task) for task in tasks):
        raise UsageError(f"no task of this run matches {options.task!r}; the first is {min(tasks, default='missing')}")


def _chosen(episodes: Episodes, choose: Callable[[Result], bool]) -> Episodes:
    """Chooses episodes by their results; only those that are printed are read."""
    return episodes.where(np.array([choose(result) for result in episodes.results], dtype=bool)[episodes.each_result])


def _print_some(title: str, episodes: Episodes, describe: Callable[[Episode], str], *, every: bool) -> None:
    """Prints episodes below their number."""
    out.text(f"\n{title}: {len(episodes)}")
    out.entries((episode.key, describe(episode)) for episode in islice(episodes, None if every else _LISTED))
    if not every and len(episodes) > _LISTED:
        out.line(f"... and {len(episodes) - _LISTED} more (--all lists all)")


def _is_listed(result: Result, options: argparse.Namespace) -> bool:
    if options.failed:
        value, active = result.axes[AXES.index(options.failed)]
        return _matches(result, options) and active and value < 1.0
    return _matches(result, options) and (options.all or any(value != 1.0 for value, _ in result.axes))


def _matches(result: Result, options: argparse.Namespace) -> bool:
    _, attack, suite = result.kind
    return (
        options.suite in (None, suite)
        and options.attack in (None, attack or "none")
        and (options.task is None or fnmatch.fnmatchcase(result.task_id, options.task))
    )


def _error(episode: Episode) -> str:
    return f"{episode.status}: {episode.error}"


def _values(episode: Episode) -> str:
    values = "  ".join(f"{name} {axis.value:.2f}" for name, axis in episode.verdict.axes.items() if axis.active)
    return f"{values}  ({episode.ended})"
