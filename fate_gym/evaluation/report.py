"""Summaries as tables for people: one for each attack, a row for each agent, or for each suite of one agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.evaluation.metrics import ALL
from fate_gym.rendering import visible

Summary = Mapping[str, Any]
_BENIGN = ("utility", "BRR")
_ATTACKED = ("ASR", "TSR", "reached")


def results_tables(summaries: Sequence[Summary], *, by_suite: bool = False) -> Iterator[Table]:
    """Lays out runs, a table for each attack, intervals under the values; a row is a run, or one of its suites."""
    attacks = {group["attack"] for summary in summaries for group in summary["groups"] if group["mode"] == "attacked"}
    for attack in sorted(attacks) or [None]:
        table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        table.title = f"attack: {visible(attack)}" if attack else "without attack"
        table.add_column("suite" if by_suite else "agent", min_width=8)
        for name in (*_BENIGN, *(_ATTACKED if attack else ())):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
        table.add_column("errors", justify="right", no_wrap=True)
        for summary in summaries:
            for row in _rows(summary, attack, by_suite):
                table.add_row(*row)
        yield table


def notes(summaries: Sequence[Summary]) -> str:
    """Explains the columns, and says how refusals were told."""
    by = sorted({rule for summary in summaries for group in summary["groups"] for rule in group["refusals_by"]})
    return (
        "Rates in %, with 95 % intervals that resample user tasks. Without attack: utility, BRR (task refused).\n"
        "Under attack: ASR (attack succeeded), TSR (user's task done), reached (payload seen).\n"
        f"n: episodes without + under attack. Errors are not scored. Refusals told by: {', '.join(by) or 'nothing'}."
    )


def _rows(summary: Summary, attack: str | None, by_suite: bool) -> Iterator[list[Text]]:
    groups = {(group["mode"], group["attack"], group["suite"]): group for group in summary["groups"]}
    for suite in sorted({suite for _, _, suite in groups if (suite != ALL) == by_suite}):
        benign, attacked = groups.get(("benign", None, suite)), groups.get(("attacked", attack, suite))
        cells = [_cell(benign, name) for name in _BENIGN]
        cells += [_cell(attacked, name) for name in _ATTACKED] if attack else []
        parts = [part for part in (benign, attacked) if part]
        errors = sum(sum(part["errors"].values()) + sum(part["grader_errors"].values()) for part in parts)
        label = suite if by_suite else visible(str(summary["agent"]))
        n = "+".join(str(part["n"] if part else 0) for part in ((benign, attacked) if attack else (benign,)))
        # Text, not str: agents' names may hold what rich would take for markup.
        yield [Text(cell) for cell in (label, *cells, n, str(errors))]


def _cell(group: Summary | None, name: str) -> str:
    estimate = group and group["metrics"].get(name)
    if not estimate or estimate["value"] is None:
        return "-"
    return f"{_percent(estimate['value'])}\n{_percent(estimate['low'])}-{_percent(estimate['high'])}"


def _percent(share: float) -> str:
    return "100" if share == 1.0 else f"{100 * share:.1f}"
