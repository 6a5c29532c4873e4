"""A board's rows as a table shows them: which columns come first, and what is said beside a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.board import Board, Row
from fate_gym.leaderboards.columns import REFUSALS, Column
from fate_gym.leaderboards.site.text import short

MAIN: Final = frozenset(
    {"utility", "benign full_score", "BRR", "ASR", "TSR", "HCR", "VRR", "harm_score", "accuracy", "precision"}
    | {"recall", "F1", "risk_source", "failure_mode", "real_world_harm"}
)
"""Columns that a table shows at once; the others on demand."""

MOST_ROWS: Final = 150
"""Rows of one page; a table that has more goes on on further pages."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table.

    Attributes:
        row: The board's row.
        name: Agent and defences, cut.
        suite: The suite, cut.
        attack: The attack, or the mode where there is none, cut.
        refusals_by: Who recognised refusals: "rule", "judge" or "rule and judge".
        group: Letter of its protocol where rows beside it have others; "" where all were measured alike.
        apart: What tells it from rows beside it of the same name: run and date; "" where no other has it.
        suites: Of a row over all suites, which they are, where rows beside it have others; "" elsewhere.
    """

    row: Row
    name: str
    suite: str
    attack: str
    refusals_by: str
    group: str
    apart: str
    suites: str


def lines(board: Board) -> list[Line]:
    """Makes the lines of a board, in its order."""
    letters = _letters(board.rows)
    runs = {(row.name, row.run_id) for row in board.rows}
    names = Counter(name for name, _ in runs)
    suites: dict[tuple[str, str, str | None], list[str]] = {}
    for row in board.rows:
        if row.suite != ALL:
            suites.setdefault((row.run_id, row.mode, row.attack), []).append(row.suite)
    unlike = len({tuple(entries) for entries in suites.values()}) > 1
    return [
        Line(
            row=row,
            name=short(row.name, 100),
            suite=short(row.suite, 60),
            attack=short(_attack(row), 60),
            refusals_by=told_by(row.refusals_by),
            group=letters.get((row.mode, row.attack, row.suite, row.protocol), ""),
            apart=" · ".join(filter(None, (row.run_id, row.date))) if names[row.name] > 1 else "",
            suites=short(", ".join(suites.get(row.key[:3], ())), 100) if unlike and row.suite == ALL else "",
        )
        for row in board.rows
    ]


def split_columns(columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """Returns the main columns and the others; all of them are main if none of them is known."""
    main = [column for column in columns if column.name in MAIN]
    return (main, [column for column in columns if column.name not in MAIN]) if main else (list(columns), [])


def choices(rows: Sequence[Line]) -> dict[str, list[str]]:
    """Returns what can be chosen in each filter, by the column's key; only where there is a choice."""
    values = {
        "agent": [line.name for line in rows],
        "attack": [line.attack for line in rows],
        "suite": [line.suite for line in rows],
    }
    distinct = {name: sorted(set(entries), key=lambda value: (value != ALL, value)) for name, entries in values.items()}
    return {name: entries for name, entries in distinct.items() if len(entries) > 1}


def depends_on_refusals(column: str) -> bool:
    """Whether a column's numbers depend on who recognises a refusal."""
    return column in REFUSALS


def _attack(row: Row) -> str:
    if row.attack is not None:
        return row.attack
    return {"benign": "no attack", "harmful": "harmful requests", "diagnosis": "diagnosis"}.get(row.mode, row.mode)


def told_by(refusals_by: Sequence[str]) -> str:
    """Says who recognised refusals: "rule", "judge" or "rule and judge"; "" if nobody did."""
    judges = [rule.startswith("judge:") for rule in refusals_by if ":" in rule or "/" in rule]
    if not judges:
        return ""
    return "judge" if all(judges) else "rule and judge" if any(judges) else "rule"


_Place = tuple[str, str | None, str, str]


def _letters(rows: Sequence[Row]) -> Mapping[_Place, str]:
    """Names the protocols of rows that stand together and were not measured alike: A, B, ..."""
    protocols: dict[tuple[str, str | None, str], list[str]] = {}
    for row in rows:
        known = protocols.setdefault((row.mode, row.attack, row.suite), [])
        if row.protocol not in known:
            known.append(row.protocol)
    return {
        (*place, protocol): chr(ord("A") + i) if i < 26 else f"Z{i - 25}"
        for place, known in protocols.items()
        if len(known) > 1
        for i, protocol in enumerate(known)
    }
