"""`fate-gym export`: a run in another tool's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fate_gym.cli.terminal import out


def add_commands(commands: Any) -> None:
    """Adds `export`."""
    from fate_gym.exporting import FORMATS

    export = commands.add_parser(
        "export",
        help="write a run in another tool's format",
        description="Writes the scored episodes of a run in another tool's format. What that format has no place for "
        "is left out, counted and printed.",
    )
    export.set_defaults(run=run_export)
    export.add_argument("run_folder", metavar="RUN", type=Path, help="The run folder.")
    listed = "; ".join(f"`{name}`, {form.what}" for name, form in FORMATS.items())
    export.add_argument("--to", metavar="FORMAT", required=True, choices=FORMATS, help=f"The format: {listed}.")
    export.add_argument(
        "--out", metavar="PATH", type=Path, help="The file or folder to write (default: beside the run folder)."
    )


def run_export(options: argparse.Namespace) -> int:
    """Writes a run in another format."""
    from fate_gym.exporting import export_run

    written = export_run(options.run_folder, options.to, options.out)
    for reason, count in written.left_out.items():
        out.line(f"left out: {count} {reason}")
    out.line(f"{written.episodes} episodes: {written.path}")
    return 0
