"""`fate-gym show`: a run's results, or one of its episodes as a person reads it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fate_gym.cli.terminal import out
from fate_gym.episode import Episode
from fate_gym.errors import UsageError
from fate_gym.evaluation.report import notes, read_summary, remarks, results_tables
from fate_gym.evaluation.store import RunFolder
from fate_gym.rendering import render_episode

_LISTED = 40


def add_commands(commands: Any) -> None:
    """Adds `show`."""
    parser = commands.add_parser(
        "show",
        help="show the results of a run, or one of its episodes",
        description="Shows the results of a run and its episodes below a perfect score, or one episode in full.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="The run folder.")
    parser.add_argument("episode", metavar="EPISODE", nargs="?", help="An episode's key, or a part that only it has.")
    parser.add_argument("--all", action="store_true", help="List every episode, not only those below a perfect score.")


def run(options: argparse.Namespace) -> int:
    """Shows a run or an episode."""
    folder = RunFolder.read(options.run_folder)
    if options.episode is None:
        _show_run(folder, every=options.all)
    else:
        _show_episode(_find(folder, options.episode))
    return 0


def _show_run(folder: RunFolder, *, every: bool) -> None:
    summary = read_summary(folder.path / "summary.json")
    out.line(f"{summary['agent']} on {summary['env']}")
    for table in results_tables([summary], by_suite=True):
        out.table(table)
    out.prose(notes([summary]))
    for remark in remarks(folder.episodes(), folder.failures()):
        out.line(remark)
    listed = [episode for episode in folder.episodes() if every or not _perfect(episode)]
    printed = listed if every else listed[:_LISTED]
    out.text(f"\n{'episodes' if every else 'episodes below a perfect score'}: {len(listed)}")
    for line in [*map(_line, printed), *map(_failure_line, folder.failures())]:
        out.line(line)
    if len(printed) < len(listed):
        out.line(f"... and {len(listed) - len(printed)} more (--all)")


def _perfect(episode: Episode) -> bool:
    return all(axis.value == 1.0 for axis in episode.verdict.axes.values())


def _line(episode: Episode) -> str:
    values = "  ".join(f"{name} {axis.value:.2f}" for name, axis in episode.verdict.axes.items() if axis.active)
    return f"{episode.key}  {values}  ({episode.ended})"


def _failure_line(failure: Episode) -> str:
    return f"{failure.key}  {failure.status}: {failure.error}"


def _find(folder: RunFolder, name: str) -> Episode:
    """Finds the episode that is meant, and fails where several or none could be."""
    records = {record.key: record for record in folder.failures() if name in record.key}
    records.update({record.key: record for record in folder.episodes() if name in record.key})
    for matches in ([name], [key for key in records if key.endswith((name, f"{name}#0"))], list(records)):
        if len(matches) == 1 and matches[0] in records:
            return records[matches[0]]
    if not records:
        raise UsageError(f"{folder.path} holds no episode whose key contains {name!r}; `fate-gym show RUN --all`")
    some = ", ".join(sorted(records)[:5])
    raise UsageError(f"{len(records)} episodes of {folder.path} have {name!r} in their key: {some}, ...")


def _show_episode(episode: Episode) -> None:
    out.line(episode.key)
    out.line(f"seed {episode.seed}, status {episode.status}")
    if episode.error:
        out.line(f"error: {episode.error}")
    for vector, text in episode.injections.items():
        out.line(f"injected at {vector} ({'reached' if episode.injection_reached else 'not reached'}):")
        out.text("\n".join(f"    {line}" for line in text.strip().split("\n")))
    out.text("\n" + render_episode(episode.messages, episode.ended, episode.verdict.to_json()))
