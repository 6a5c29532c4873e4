"""A training's summary as a table for people: before and after, on each test set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_NAME: Final = 20
_METRICS: Final = ("ASR", "TSR", "reached", "BRR", "utility", "validity")


def results_table(summary: Mapping[str, Any], main: str = "held-out") -> Table:
    """Lays out a summary: two rows for each test set, intervals under the values."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("test set", *_METRICS, "n"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=True)
    sets = {main: {when: summary[when] for when in ("before", "after")}, **summary["splits"]}
    for name, rows in sets.items():
        for when, row in rows.items():
            if row is not None:
                cells = [f"{_short(name)}\n  {when}", *(_cell(row.get(metric)) for metric in _METRICS)]
                # Text, not str: names may hold what rich would take for markup.
                table.add_row(*(Text(cell) for cell in (*cells, str(row["n"]))))
    return table


def notes(summary: Mapping[str, Any], out: Path) -> str:
    """Explains the columns, and says what training cost and where its result lies."""
    budget = summary["budget"]
    lines = [
        "Rates in %, with 95 % intervals that resample user tasks. Under attack: ASR (attack succeeded), TSR (user's",
        "task done), reached (payload seen). Without: BRR (task refused), utility (without tasks that doing nothing",
        "passes). n: episodes of both.",
        f"Cost: {budget['rollouts']:,} rollouts, {budget['candidates']:,} repair candidates, {budget['tokens']:,} "
        f"tokens written, {budget['seconds'] / 60:.1f} minutes.",
        f"policy: {summary['best']['policy']} (round {summary['best']['round']}); run: {out}",
    ]
    if summary["contaminated_by"]:
        lines.append(
            f"It has learned from data that asks not to be trained on: {', '.join(summary['contaminated_by'])}."
        )
    return "\n".join(lines)


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate.get("value") is None:
        return "-"
    value, low, high = (100 * estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f}\n{low:.0f}-{high:.0f}"


def _short(name: str) -> str:
    """A name that leaves room for the numbers in 80 columns."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
