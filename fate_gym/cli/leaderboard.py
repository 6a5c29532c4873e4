"""`fate-gym leaderboard`: builds a board from runs, verifies a run, compares two, runs the built-in agents."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fate_gym.cli.terminal import err, out
from fate_gym.errors import RunError, UsageError
from fate_gym.rendering import visible_line

if TYPE_CHECKING:
    from fate_gym.leaderboards.findings import Verification

_LISTED = 100
"""Differences that `verify` prints; `--json` has all."""


def add_commands(commands: Any) -> None:
    """Adds `leaderboard` and its own commands."""
    parser = commands.add_parser(
        "leaderboard",
        help="build a leaderboard from runs, verify a run, compare two runs",
        description="Builds a leaderboard from runs, verifies a run, or compares two runs.",
    )
    own = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_build(own)
    _add_verify(own)

    compare = own.add_parser(
        "compare",
        help="compare two runs on the tasks that both have",
        description="Compares two runs on the tasks that both have, and prints the differences (B minus A) with "
        "intervals and p-values. Names the versions, data and settings in which they differ.",
        examples=["leaderboard compare runs/a runs/b"],
    )
    compare.set_defaults(run=run_compare)
    compare.add_argument("a", metavar="A", type=Path, help="The first run folder.")
    compare.add_argument("b", metavar="B", type=Path, help="The second run folder.")
    compare.add_argument("--all", action="store_true", help="Show each suite by itself too, not only all together.")
    compare.add_argument("--json", action="store_true", help="Print the comparison as JSON.")

    regraded = own.add_parser(
        "regraded",
        help="what others recorded, graded here",
        description="Prints the rates of imported runs, ours beside the recorded ones; without RUN those of public "
        "logs with which the package ships.",
    )
    regraded.set_defaults(run=run_regraded)
    regraded.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="Imported runs, or folders that hold some.")
    regraded.add_argument("--out", metavar="FILE", type=Path, help="Write the figures, and no text of a log, as JSON.")

    results = own.add_parser(
        "results",
        help="run the built-in agents on AgentDojo",
        description="Runs the built-in agents on AgentDojo and writes their summaries, with which the package ships.",
        examples=["leaderboard results --out leaderboards/results"],
    )
    results.set_defaults(run=run_results)
    results.add_argument("--out", metavar="DIR", type=Path, required=True, help="The folder to write.")
    results.add_argument("--suite", nargs="+", metavar="NAME", help="Run only these suites (default: all).")
    results.add_argument("--attack", nargs="+", metavar="NAME", help="Run only these attacks (default: all).")


def _add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build",
        help="build static pages of a leaderboard from runs",
        description="Builds static pages that open from disk, with the same numbers as JSON, CSV and Markdown. A run "
        "that cannot be used is left out, and the reason is printed.",
        examples=["leaderboard build runs --out site"],
    )
    build.set_defaults(run=run_build)
    build.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="Run folders, or folders that hold some.")
    build.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("site"), help="The folder to write (default: site)."
    )
    build.add_argument(
        "--single-file",
        metavar="FILE",
        type=Path,
        help="Write the board alone, as one file that can be sent by mail, instead of a folder.",
    )
    build.add_argument(
        "--private", action="store_true", help="Show prompts that the licence does not allow to publish."
    )


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="check a run against itself and the benchmark",
        description="Plays the recorded actions of a run again, recomputes every number, and prints what differs. This "
        "checks that a run is consistent; it cannot know whether the model that is named sent the actions.",
        examples=["leaderboard verify runs/a"],
    )
    verify.set_defaults(run=run_verify)
    verify.add_argument("run_folder", metavar="RUN", type=Path, help="The run folder.")
    verify.add_argument(
        "--trust",
        metavar="MODULE",
        help="Import this Python module, which registers the run's environment. Give only code that you trust.",
    )
    verify.add_argument("--json", action="store_true", help="Print the report as JSON.")


def run_build(options: argparse.Namespace) -> int:
    """Writes the board of some runs; 0 if all of them are on it, 1 if some had to be left out."""
    from fate_gym.leaderboards.board import build
    from fate_gym.leaderboards.exports import write_exports
    from fate_gym.leaderboards.runs import find_runs, load_runs
    from fate_gym.leaderboards.site import board_file, build_site

    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out} is a file, not a folder: give another --out")
    left_out: list[Path] = []

    def leave_out(path: Path, reason: str) -> None:
        left_out.append(path)
        err.line(f"left out {path}: {reason}")

    runs = load_runs(find_runs(options.runs), leave_out=leave_out)
    if not runs:
        raise RunError("no run is left to build a board from")
    boards = build(runs)
    if options.single_file is not None:
        if len(boards) != 1:
            held = ", ".join(board.env for board in boards) or "none"
            raise UsageError(f"--single-file writes one board, and these runs make {len(boards)}: {held}")
        options.single_file.write_text(board_file(boards[0], private=options.private), encoding="utf-8", newline="")
    else:
        write_exports(boards, options.out)
        build_site(boards, runs, options.out, private=options.private)
    page = options.single_file or options.out / "index.html"
    out.line(f"{len(runs)} runs, {sum(len(board.rows) for board in boards)} rows: open {page}")
    return int(bool(left_out))


def run_verify(options: argparse.Namespace) -> int:
    """Checks one run; 0 if everything agrees, 1 if something differs."""
    from fate_gym.leaderboards.verification import verify

    report = verify(options.run_folder, trusted=options.trust)
    if options.json:
        out.json(report.to_json())
    else:
        _print_verification(report)
    return int(not report.ok)


def _print_verification(report: Verification) -> None:
    lines = [f"{entry.where}: {entry.what}" for entry in report.differences[:_LISTED]]
    if len(report.differences) > _LISTED:
        lines.append(f"and {len(report.differences) - _LISTED} more (--json has all)")
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"cannot be known: {what}" for what in report.unknown]
    verdict = "agrees" if report.ok else f"DIFFERS in {len(report.differences)} places"
    lines.append(f"{report.run}: {report.replayed} episodes played again; the run {verdict}")
    for line in lines:
        out.prose(visible_line(line))


def run_compare(options: argparse.Namespace) -> int:
    """Compares two runs, the second minus the first."""
    from fate_gym.leaderboards.comparison import compare
    from fate_gym.leaderboards.runs import load_runs
    from fate_gym.leaderboards.terminal import comparison_notes, comparison_tables

    comparison = compare(*load_runs([options.a, options.b]))
    if options.json:
        out.json(dataclasses.asdict(comparison))
        return 0
    for table in comparison_tables(comparison, every_suite=options.all):
        out.table(table)
    out.prose(comparison_notes(comparison))
    return 0


def run_regraded(options: argparse.Namespace) -> int:
    """Prints the rates of imported runs, and writes them if asked to."""
    from fate_gym.leaderboards.regraded import kept, regrade, to_json
    from fate_gym.leaderboards.runs import find_runs
    from fate_gym.leaderboards.terminal import regraded_notes, regraded_tables
    from fate_gym.storage import replace_file

    rows = regrade(find_runs(options.runs)) if options.runs else kept()
    for table in regraded_tables(rows):
        out.table(table)
    out.prose(regraded_notes(rows))
    if options.out is not None:
        replace_file(options.out, to_json(rows).encode())
        out.line(str(options.out))
    return 0


def run_results(options: argparse.Namespace) -> int:
    """Runs the built-in agents and writes their rows."""
    from fate_gym.cli.settings import usage_errors
    from fate_gym.leaderboards.results import write_results

    with usage_errors():
        written = write_results(options.out, suites=options.suite, attacks=options.attack, say=err.line)
    for path in written:
        out.line(str(path))
    return 0
