"""A training's summary as a table for people: before and after, on each test set."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.trainers.study.records import Estimate, Summary

_NAME: Final = 20
METRICS: Final = {
    "ASR": "ASR",
    "TSR": "TSR",
    "reached": "reached",
    "BRR": "BRR",
    "earned_utility": "earned",
    "validity": "validity",
}
"""The metrics of a table, and their headings, which are short: a table fits into 80 columns."""


def results_table(summary: Summary) -> Table:
    """Lays out a summary: two rows for each test set, with intervals under the values."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("test set", *METRICS.values(), "n"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=True)
    sets = {main_name(summary): {when: summary[when] for when in ("before", "after")}, **summary["splits"]}
    for name, rows in sets.items():
        for when, row in rows.items():
            if row is not None:
                cells = [f"{_short(name)}\n  {when}", *(estimate_cell(row.get(metric)) for metric in METRICS)]
                # Text, not str: rich would read parts of a name as markup.
                table.add_row(*(Text(cell) for cell in (*cells, str(row["n"]))))
    return table


def main_name(summary: Summary) -> str:
    """Returns the name of the main test set; version 1 of the summary does not have it."""
    return str(summary.get("main", "main test set"))


def notes(summary: Summary, out: Path) -> str:
    """Explains the columns, and tells what the training cost and where its result lies."""
    budget = summary["budget"]
    lines = [
        "Rates in %, with 95 % intervals that resample user tasks. Under attack: ASR (attack succeeded), TSR (user's",
        "task done), reached (payload seen). Without: BRR (task refused), earned (task done, of those that doing",
        "nothing does not do). n: episodes of both.",
        f"Cost: {budget['rollouts']:,} rollouts, {budget['candidates']:,} repair candidates, {budget['tokens']:,} "
        f"policy tokens, {budget['seconds'] / 60:.1f} minutes.",
        f"policy: {summary['best']['policy']} (round {summary['best']['round']}); training: {out}",
    ]
    if summary["contaminated_by"]:
        lines.append(
            "The policy has learned from data whose authors ask not to train on it: "
            f"{', '.join(summary['contaminated_by'])}."
        )
    return "\n".join(lines)


def estimate_cell(estimate: Estimate | None) -> str:
    """Returns a metric as a cell: its value in %, and under it the interval."""
    if not estimate or estimate.get("value") is None:
        return "-"
    value, low, high = (100 * estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f}\n{low:.0f}-{high:.0f}"


def _short(name: str) -> str:
    """Returns a name short enough to leave room for the numbers in 80 columns."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
