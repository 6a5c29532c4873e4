"""Comparisons, and what others recorded and we graded, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.comparison import Compared, Comparison
from fate_gym.leaderboards.regraded import Row
from fate_gym.leaderboards.statistics import Difference
from fate_gym.rendering import visible_line


def comparison_tables(comparison: Comparison, *, every_suite: bool = False) -> Iterator[Table]:
    """Lays out a comparison, a table for each attack and suite, a row for each metric.

    Args:
        comparison: What to show.
        every_suite: Whether suites by themselves are shown too.
    """
    rows = [row for row in comparison.rows if every_suite or row.suite == ALL]
    for attack, suite in dict.fromkeys((row.attack, row.suite) for row in rows):
        table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        where = f", {suite}" if suite != ALL else ""
        # Text, not str: names may hold what rich would take for markup.
        table.title = Text(visible_line(f"attack: {attack}{where}" if attack else f"without attack{where}"))
        table.add_column("metric")
        for name in ("A", "B", "B - A", "95 % interval", "p", "n"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            if (row.attack, row.suite) == (attack, suite):
                table.add_row(*(Text(cell) for cell in _cells(row)))
        yield table


def comparison_notes(comparison: Comparison) -> str:
    """Explains the table, and says what stands outside of it."""
    lines = [
        f"A: {comparison.a}   B: {comparison.b}",
        "Rates in %, differences in points; better or worse: the interval excludes 0 and p < 0.05.",
        "n: episodes that both runs have.",
        "p: McNemar's exact test for single pairs, swaps within tasks elsewhere; not corrected for many rows.",
    ]
    if comparison.only_a or comparison.only_b:
        lines.append(f"Episodes of one run alone, in no row: A {comparison.only_a}, B {comparison.only_b}.")
    lines += [visible_line(f"{setting}.") for setting in comparison.settings]
    return "\n".join([*lines, *(visible_line(f"warning: {warning}") for warning in comparison.warnings)])


def regraded_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Lays out imported runs, a table for each attack or mode; each rate as we and as the log has it."""
    for env, mode, attack in dict.fromkeys((row.env, row.mode, row.attack) for row in rows):
        of = [row for row in rows if (row.env, row.mode, row.attack) == (env, mode, attack)]
        metrics = list(dict.fromkeys(name for row in of for name in row.ours))
        table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        table.title = Text(visible_line(f"{env}, {f'attack: {attack}' if attack else mode}"))
        table.add_column("agent")
        for name in metrics:
            table.add_column(name, justify="right", no_wrap=True)
            table.add_column("recorded", justify="right", no_wrap=True)
        for name in ("n", "missing", "benchmark"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in of:
            cells = [cell for name in metrics for cell in _both(row, name)]
            missing = "-" if row.missing is None else str(row.missing)
            version = f"{row.version}{' (old)' * row.is_old}"
            table.add_row(*(Text(visible_line(cell)) for cell in (row.agent, *cells, str(row.n), missing, version)))
        yield table


def regraded_notes(rows: Sequence[Row]) -> str:
    """Names the sources, and says how to read the tables."""
    sources = dict.fromkeys((row.source, row.written) for row in rows)
    return "\n".join(
        [
            "Rates in %, with 95 % intervals; `recorded` is what the logs say of the same episodes. n: episodes; "
            "missing: those of the run's attacks that nobody recorded. (old): the benchmark has a newer version.",
            *(
                visible_line(f"source: {source or '(nobody said)'}{written and f'; logs of {written}'}")
                for source, written in sources
            ),
        ]
    )


def _both(row: Row, metric: str) -> tuple[str, str]:
    if metric not in row.ours:
        return "-", "-"
    value, low, high, _ = row.ours[metric]
    between = "" if low is None or high is None else f" ({_percent(low)}-{_percent(high)})"
    return f"{_percent(value)}{between}", _percent(row.recorded[metric])


def _cells(row: Compared) -> list[str]:
    difference = row.difference
    arrow = {"up": " ↑", "down": " ↓", "": ""}[row.column.direction]
    return [
        visible_line(row.column.name) + arrow,
        _percent(difference.a),
        _percent(difference.b),
        _points(difference.value) + _sign(row),
        "-" if difference.low is None else f"{_points(difference.low)} to {_points(difference.high)}",
        _p(difference),
        str(difference.n),
    ]


def _sign(row: Compared) -> str:
    """Says whether the difference is for better or worse, where both its interval and its p-value say so."""
    low, high, p = row.difference.low, row.difference.high, row.difference.p
    if low is None or high is None or p is None or low <= 0 <= high or p >= 0.05 or not row.column.direction:
        return ""
    return " better" if (low > 0) == (row.column.direction == "up") else " worse"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _p(difference: Difference) -> str:
    if difference.p is None:
        return "-"
    return "<0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
