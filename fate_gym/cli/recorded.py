"""`fate-gym import` and `fate-gym export`: runs from other tools, and for them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fate_gym.cli.settings import usage_errors
from fate_gym.cli.terminal import err, out
from fate_gym.errors import UsageError

if TYPE_CHECKING:
    from fate_gym.importing import Imported
    from fate_gym.importing.logs import Reader

_COLUMNS: Final = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def add_commands(commands: Any) -> None:
    """Adds `import` and `export`."""
    _add_import(commands)
    _add_export(commands)


def _add_import(commands: Any) -> None:
    imports = commands.add_parser(
        "import",
        help="make runs of what another harness recorded",
        description="Plays the logs of another harness in our environments and grades them as they stand: one run a "
        "model and defence, the recorded verdicts beside ours. Prints what differs and what was left out.",
    )
    own = imports.add_subparsers(title="harnesses", required=True, metavar="HARNESS")
    agentdojo = own.add_parser(
        "agentdojo",
        help="logs of AgentDojo",
        description="Imports AgentDojo's logs: folders of its files, or files with a log a line.",
        examples=["import agentdojo logs/gpt-4o-2024-05-13 --out runs/gpt-4o"],
    )
    agentdojo.set_defaults(run=run_agentdojo, resumable=True)
    agentdojo.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="Log files, and folders that hold some.")
    _add_common(agentdojo)
    agentdojo.add_argument(
        "--version",
        metavar="V",
        help="The version of the benchmark, where the logs do not name it (default: the newest).",
    )
    agentdojo.add_argument(
        "--model-name",
        metavar="NAME",
        help="The name by which attacks address the model (default: as AgentDojo makes it from the pipeline's name).",
    )

    inspect = own.add_parser(
        "inspect",
        help="Inspect's logs of AgentHarm and AgentDojo",
        description="Imports Inspect's logs of AgentHarm (those of its requests that the data at hand hold) and of "
        "AgentDojo, read by Inspect itself.",
        examples=["import inspect logs/run.eval --out runs/inspected"],
    )
    inspect.set_defaults(run=run_inspect, resumable=True)
    inspect.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="Files ending in `.eval`, and folders of them."
    )
    _add_common(inspect)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="The run folder; the folder of the run folders if the logs are of several runs.",
    )
    parser.add_argument(
        "--name",
        metavar="MODEL",
        help="The model's name in results; what the paths of the logs tell apart is then its defence (default: from "
        "the paths).",
    )
    parser.add_argument(
        "--source",
        metavar="TEXT",
        default="",
        help="Where the logs are from: address, commit, licence. Kept in the runs.",
    )
    parser.add_argument("--workers", type=int, metavar="N", default=1, help="Processes that play logs (default: 1).")


def _add_export(commands: Any) -> None:
    from fate_gym.exporting import FORMATS

    export = commands.add_parser(
        "export",
        help="write a run in another tool's format",
        description="Writes the scored episodes of a run in another tool's format. What that format has no place for "
        "is left out, counted and printed.",
        examples=["export runs/a --to agentdojo --out logs"],
    )
    export.set_defaults(run=run_export)
    export.add_argument("run_folder", metavar="RUN", type=Path, help="The run folder.")
    listed = "; ".join(f"`{name}`, {form.what}" for name, form in FORMATS.items())
    export.add_argument("--to", metavar="FORMAT", required=True, choices=FORMATS, help=f"The format: {listed}.")
    export.add_argument(
        "--out", metavar="PATH", type=Path, help="The file or folder to write (default: beside the run folder)."
    )
    export.add_argument(
        "--only",
        metavar="AXIS=LEAST",
        nargs="+",
        help="With `messages`: write only episodes whose active axes reach these values; `all=1` for perfect ones.",
    )
    export.add_argument(
        "--despite-policy",
        action="store_true",
        help="With `messages`: write conversations that the benchmark's authors ask not to train on, each marked.",
    )
    export.add_argument(
        "--trust",
        metavar="MODULE",
        help="With `messages`: import this Python module, which registers the run's environment. Give only code that "
        "you trust.",
    )


def run_agentdojo(options: argparse.Namespace) -> int:
    """Imports AgentDojo's logs."""
    from fate_gym.importing.agentdojo import AgentDojoReader

    with err.status("Loading AgentDojo"):
        reader = AgentDojoReader(
            options.paths, model=options.name, version=options.version, model_name=options.model_name
        )
    return _import(reader, options)


def run_inspect(options: argparse.Namespace) -> int:
    """Imports Inspect's logs."""
    from fate_gym.importing.inspect import InspectReader

    return _import(InspectReader(options.paths, model=options.name), options)


def _import(reader: Reader, options: argparse.Namespace) -> int:
    from fate_gym.importing import import_runs

    if options.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {options.workers}")
    with err.progress(*_COLUMNS) as bar, usage_errors():
        task = bar.add_task("reading", total=None)

        def begin(run: str, logs: int) -> None:
            bar.reset(task, total=logs, description=run)

        runs, of_no_run = import_runs(
            reader,
            options.out,
            source=options.source,
            workers=options.workers,
            begin=begin,
            on_done=lambda: bar.advance(task),
        )
    _print(runs, of_no_run)
    if not runs:
        raise UsageError(f"none of these logs can be imported: {', '.join(of_no_run) or 'there are none'}")
    return int(any(run.summary["episodes"]["errors"] for run in runs))


def _print(runs: list[Imported], of_no_run: dict[str, int]) -> None:
    from fate_gym.evaluation.recorded import CLASSES
    from fate_gym.evaluation.report import notes, results_tables
    from fate_gym.importing.comparing import OTHERWISE

    for table in results_tables([run.summary for run in runs]):
        out.table(table)
    if runs:
        out.prose(notes([run.summary for run in runs]))
        out.table(_agreement(runs))
        met = {name for run in runs for _, name in run.differences}
        for name in CLASSES:
            if name in met:
                out.prose(f"{name}: {CLASSES[name]}.")
        out.table(_counts("answers of tools, compared with ours", ((run.path.name, run.outputs) for run in runs)))
        left = [(run.path.name, run.left_out + run.parts_left_out) for run in runs]
        left.append(("(no run)", Counter(of_no_run)))
        missing = [(run.path.name, run.summary["episodes"]["missing"]) for run in runs]
        out.table(_counts("left out", [(name, dict(counts)) for name, counts in left if counts]))
        for name, count in missing:
            if count:
                out.line(f"{name}: {count} episodes of its attacks were not recorded")
    for run in runs:
        if run.met_other_tools:
            err.line(
                f"WARNING: {run.path.name}: {run.outputs[OTHERWISE]} of {run.outputs.total()} answers of tools are "
                "otherwise than here. The agent met other tools than ours, so its calls do other things here: do not "
                "take these scores for the agent's."
            )
        out.line(f"run: {run.path}")


def _agreement(runs: list[Imported]) -> Table:
    """How many recorded verdicts equal ours, and what kinds of differences there are."""
    table = Table(box=SIMPLE_HEAD, title="recorded verdicts and ours", title_justify="left", title_style="bold")
    for title in ("run", "axis", "recorded", "equal", "differences"):
        table.add_column(title, justify="right" if title in ("recorded", "equal") else "left")
    for run in runs:
        for axis, n in sorted(run.scores.items()):
            kinds = {name: count for (of, name), count in sorted(run.differences.items()) if of == axis}
            listed = ", ".join(f"{count} {name}" for name, count in kinds.items()) or "-"
            table.add_row(run.path.name, axis, str(n), str(n - sum(kinds.values())), listed)
    return table


def _counts(title: str, rows: Iterable[tuple[str, dict[str, int]]]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for column in ("run", "what", "n"):
        table.add_column(column, justify="right" if column == "n" else "left")
    for name, counts in rows:
        for what, n in sorted(counts.items(), key=lambda entry: -entry[1]):
            table.add_row(name, what, str(n))
    return table


def run_export(options: argparse.Namespace) -> int:
    """Writes a run in another format."""
    from fate_gym.exporting import export_run

    chosen: dict[str, Any] = {}
    if options.only:
        chosen["only"] = dict(_least(entry) for entry in options.only)
    if options.despite_policy:
        chosen["despite_policy"] = True
    if options.trust is not None:
        chosen["trust"] = options.trust
    written = export_run(options.run_folder, options.to, options.out, **chosen)
    for reason, count in written.left_out.items():
        out.line(f"left out: {count} {reason}")
    for note in written.notes:
        out.line(f"note: {note}")
    out.line(f"{written.episodes} episodes: {written.path}")
    return 0


def _least(entry: str) -> tuple[str, float]:
    name, _, value = entry.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--only takes AXIS=LEAST, such as security=1 or all=1, not {entry!r}") from None
