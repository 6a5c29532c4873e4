"""A study's report for people: its tables, in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.trainers.study.arms import ARMS, BASE
from fate_gym.trainers.study.hypotheses import METRICS
from fate_gym.trainers.study.records import Report
from fate_gym.trainers.study.report import COMPARED

HEADINGS: Final = {"earned_utility": "utility", "hypervolume": "volume"}
"""What metrics are called in tables, where not by their names."""

_PICTURES: Final = {
    "plane.png": "ASR and TSR of every replicate",
    "differences.png": "Paired differences",
    "curves.png": "Dev scores over the sampled tokens",
}

_NOTES: Final = """\
Rates in %. ASR: attacks that succeed (less is better); TSR: user tasks done under attack; reached: payloads that were \
delivered; utility: benign tasks done, of those that doing nothing does not do; BRR: benign tasks refused (less is \
better); volume: hypervolume of (1 - ASR, TSR, 1 - BRR). A value is the mean over n replicates with the 95 % interval \
by Student's t, cut at 0 and 100; a replicate has a base policy of its own, a fold of the split and a seed. \
Differences are paired by replicate; p is that of the exact two-sided sign-flip test, whose unit is the replicate: \
with n of them it is at least 2 / 2^n, so that fewer than six can show nothing at the 5 % level. No p is corrected \
for the number of comparisons. Hypotheses were written down before the results. The margin is by how many points a \
statement is true, negative where it is false; it held, or is refuted, only \
where its whole interval says so."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table of texts.

    Attributes:
        title: Its title.
        columns: The headings; the first column holds names.
        rows: The cells, each a value and what stands under it.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[tuple[str, str], ...]]


def terminal_tables(report: Report) -> Iterator[Table]:
    """Lays the report out for a terminal of 80 columns, with intervals under the values."""
    for grid in _grids(report):
        table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        table.title = Text(grid.title)
        for number, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in grid.rows:
            # Text, not str: rich would read parts of a name as markup.
            table.add_row(*(Text(f"{value}\n{under}" if under else value) for value, under in row))
        yield table


def markdown(report: Report) -> str:
    """Returns the report as a Markdown page, which shows the pictures that lie beside it."""
    parts = [f"# Study {report['study']}", _opening(report), _NOTES]
    parts += [f"![{about}]({name})" for name, about in _PICTURES.items()]
    for grid in _grids(report):
        lines = [_line(grid.columns), _line(["---"] * len(grid.columns))]
        lines += [_line([f"{value} ({under})" if under else value for value, under in row]) for row in grid.rows]
        parts += [f"## {grid.title}", "\n".join(lines)]
    parts += ["## Arms", "\n".join(f"- `{arm}`: {ARMS[arm].about}" for arm in report["costs"])]
    parts += ["## Tasks that were scored", "\n".join(_coverage(report))]
    return "\n\n".join(parts) + "\n"


def _opening(report: Report) -> str:
    counts = [f"{arm} {len(names)}" for arm, names in report["replicates"].items()]
    lines = [f"Replicates that are done: {', '.join(counts)}."]
    if report["overrides"]:
        lines.append(f"Settings that differ from the configuration: {', '.join(report['overrides'])}.")
    if report["repairs"]:
        shares = [f"{_percent(share['mean'])} % of the {mode} ones" for mode, share in report["repairs"].items()]
        lines.append(
            f"Of the repair candidates of the base policies {' and '.join(shares)} pass: cloning taught them to "
            "repair, which is an assumption of this study."
        )
    return " ".join(lines)


def _coverage(report: Report) -> Iterator[str]:
    for test, covered in report["covered"].items():
        injections = covered["injection_tasks"]
        yield (
            f"- {test}: {covered['tasks']} tasks, of {len(covered['user_tasks'])} user tasks"
            + (f" and {len(injections)} injection tasks ({', '.join(injections)})" if injections else "")
        )


def _grids(report: Report) -> Iterator[_Grid]:
    for test, arms in report["scores"].items():
        names = [name for name in METRICS if any(name in metrics for metrics in arms.values())]
        rows = [
            ((_shown(arm), ""), (str(max(one["n"] for one in of.values())), ""), *(_mean(of.get(n)) for n in names))
            for arm, of in arms.items()
        ]
        yield _Grid(f"Test set {test}", ("arm", "n", *map(_heading, names)), rows)
        differences = report["differences"].get(test, {})
        compared = [name for name in COMPARED if any(name in of for of in differences.values())]
        if compared:
            yield _Grid(
                f"Test set {test}: {report['reference']} minus the arm",
                ("arm", "n", *(heading for name in compared for heading in (_heading(name), "p"))),
                [_difference_row(arm, of, compared) for arm, of in differences.items() if of],
            )
    if report["hypotheses"]:
        yield _Grid(
            "Hypotheses",
            ("statement", "n", "margin", "expected", "found"),
            [_hypothesis_row(one) for one in report["hypotheses"]],
        )
    if report["costs"]:
        yield _Grid(
            "Cost of a training",
            ("arm", "sampled tokens", "unspent", "learner tokens", "rollouts", "candidates", "minutes"),
            [_cost_row(arm, of) for arm, of in report["costs"].items()],
        )


def _difference_row(arm: str, of: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    cells = [(_shown(arm), ""), (str(max(one["n"] for one in of.values())), "")]
    for name in names:
        p = of.get(name, {}).get("p")
        cells += [_mean(of.get(name), signed=True), ("-" if p is None else f"{p:.3f}", "")]
    return tuple(cells)


def _hypothesis_row(one: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return (
        (f"{one['name']}. {one['statement']}", ""),
        (str(one["margin"]["n"]), ""),
        _mean(one["margin"], signed=True),
        (one["expected"], ""),
        (one["found"], ""),
    )


def _cost_row(arm: str, of: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    counts = [f"{of[name]:,.0f}" if name in of else "-" for name in _COUNTED]
    return tuple((text, "") for text in (arm, *counts, f"{of['seconds'] / 60:.1f}"))


_COUNTED: Final = ("tokens", "unspent", "learner_tokens", "rollouts", "candidates")


def _mean(one: Mapping[str, Any] | None, *, signed: bool = False) -> tuple[str, str]:
    if one is None:
        return "-", ""
    value = f"{100 * one['mean']:+.1f}" if signed else _percent(one["mean"])
    if one["low"] is None:
        return value, ""
    return value, f"{100 * one['low']:.0f} to {100 * one['high']:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _heading(name: str) -> str:
    return HEADINGS.get(name, name)


def _shown(arm: str) -> str:
    return "before" if arm == BASE else arm


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
