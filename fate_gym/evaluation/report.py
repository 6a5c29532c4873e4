"""Summaries as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from fate_gym.evaluation.metrics import ALL
from fate_gym.rendering import visible

Summary = Mapping[str, Any]
_COLUMNS = (("utility", "benign"), ("BRR", "benign"), ("ASR", "attacked"), ("TSR", "attacked"), ("reached", "attacked"))


def results_table(summaries: Sequence[Summary], *, by_suite: bool = False) -> Table:
    """Lays out runs, a row for each agent and attack (and suite, if `by_suite`), intervals under the values."""
    table = Table(title="Rates in %, with 95 % intervals that resample user tasks", title_justify="left")
    for name in ("agent", "attack", *(["suite"] if by_suite else [])):
        table.add_column(name)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    table.add_column("errors", justify="right")
    for summary in summaries:
        for attack, suite, benign, attacked in _rows(summary, by_suite):
            group = {"benign": benign, "attacked": attacked}
            cells = [_cell(group[mode], name) for name, mode in _COLUMNS]
            episodes = [part for part in (benign, attacked) if part]
            n = " + ".join(str(part["n"]) for part in episodes)
            errors = sum(sum(part["errors"].values()) + sum(part["grader_errors"].values()) for part in episodes)
            labels = [visible(str(summary["agent"])), visible(attack), *([suite] if by_suite else [])]
            table.add_row(*(label.replace("[", "\\[") for label in labels), *cells, n, str(errors))
    return table


def notes(summaries: Sequence[Summary]) -> str:
    """Explains the columns, and says how refusals were told."""
    by = sorted({rule for summary in summaries for group in summary["groups"] for rule in group["refusals_by"]})
    return (
        "utility, BRR (refused): without attack. ASR (attack success), TSR (user's task done), reached (payload seen): "
        "under attack. n: benign + attacked episodes.\n"
        f"Refusals told by: {', '.join(by) or 'nothing'}. Errors are not scored."
    )


def _rows(summary: Summary, by_suite: bool) -> Iterator[tuple[str, str, Summary | None, Summary | None]]:
    groups = {(group["mode"], group["attack"], group["suite"]): group for group in summary["groups"]}
    suites = sorted({suite for _, _, suite in groups if (suite != ALL) == by_suite})
    attacks = sorted({attack for mode, attack, _ in groups if mode == "attacked"}) or [None]
    for suite in suites:
        for attack in attacks:
            yield attack or "none", suite, groups.get(("benign", None, suite)), groups.get(("attacked", attack, suite))


def _cell(group: Summary | None, name: str) -> str:
    estimate = group and group["metrics"].get(name)
    if not estimate or estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f}\n{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"
