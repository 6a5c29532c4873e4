"""Runs in the formats of other tools: a table of formats, and a module for each.

A format's module has one function, `export(run, out)`, which reads a run folder and writes `out`. What the other format
has no place for is left out and counted, never bent into something else.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fate_gym.errors import UsageError, unknown
from fate_gym.evaluation.store import RunFolder


@dataclass(frozen=True, slots=True)
class Format:
    """A format that runs are exported to.

    Attributes:
        what: What is written, in a few words.
        suffix: Follows the name of the run folder where no other name is given; it begins with a dot.
        module: Has the function `export`; imported when it is asked for.
        options: Further arguments that this function takes.
    """

    what: str
    suffix: str
    module: str
    options: tuple[str, ...] = ()


FORMATS: Final[Mapping[str, Format]] = {
    "agentdojo": Format(
        "a folder of logs that AgentDojo's own tools read", ".agentdojo", "fate_gym.exporting.agentdojo"
    ),
    "messages": Format(
        "JSON lines of conversations with tools and masks, for supervised fine-tuning with TRL",
        ".jsonl",
        "fate_gym.exporting.messages",
        ("only", "despite_policy", "trust"),
    ),
    "parquet": Format("a table of one row an episode, for dataframes", ".parquet", "fate_gym.exporting.parquet"),
    "inspect": Format("a log that `inspect view` shows", ".eval", "fate_gym.exporting.inspect"),
}
"""Formats by name."""


@dataclass(slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: The file or the folder.
        episodes: Episodes written.
        left_out: Why episodes, or parts of them, are not in it -> how many.
        notes: What else its reader must know.
    """

    path: Path
    episodes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def export_run(run: Path, to: str, out: Path | None = None, **options: Any) -> Exported:
    """Writes a run in another format.

    Args:
        run: The run folder.
        to: One of `FORMATS`.
        out: The file or folder to write, which must not exist; beside the run folder by default.
        **options: Arguments of the format's own `export`.

    Raises:
        UsageError: There is no such format, it does not take an option, the run cannot be written in it, or `out` is
            there already.
        RunError: The folder is not a run, or is damaged.
    """
    if to not in FORMATS:
        raise UsageError(unknown("format", to, FORMATS))
    form = FORMATS[to]
    for name in options:
        if name not in form.options:
            raise UsageError(f"--to {to} takes no --{name.replace('_', '-')}")
    path = run.with_name(run.name + form.suffix) if out is None else out
    if path.exists():
        raise UsageError(f"{path} is already there: remove it, or give another --out")
    written: Exported = importlib.import_module(form.module).export(RunFolder(run), path, **options)
    return written
