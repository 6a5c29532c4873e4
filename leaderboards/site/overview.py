"""What the first page says of a board: who is safe, who is useful, how sure we are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.board import Board, Estimate, Row
from fate_gym.leaderboards.columns import COLUMNS, Column
from fate_gym.leaderboards.site.charts import Scatter, scatter
from fate_gym.leaderboards.site.tables import Line, lines

_COLUMNS: Final = {
    "attacked": ("ASR", "utility"),
    "harmful": ("HCR", "utility"),
    "diagnosis": ("recall", "precision"),
    "benign": ("utility",),
}
"""By mode, the columns of the table: safety, then usefulness."""

_MOST: Final = 25
"""Agents of the table, and likewise references; the board has all."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The first table of a board, and its picture.

    Attributes:
        board: The board.
        page: Name of its page.
        attack: The attack that most runs share, or the mode where there is none.
        columns: What the table shows.
        agents: One line a run, the safest first.
        references: Those of the scripted agents.
        left_out: Number of lines that there was no room for.
        others: Attacks that the board has besides.
        plot: The picture; None where fewer than two rows were measured alike.
    """

    board: Board
    page: str
    attack: str
    columns: tuple[Column, ...]
    agents: tuple[Line, ...]
    references: tuple[Line, ...]
    left_out: int
    others: tuple[str, ...]
    plot: Scatter | None


def overview(board: Board, page: str, name: str) -> Overview:
    """Makes the overview of a board.

    Args:
        board: The board.
        page: Name of its page.
        name: Becomes the plot's id.
    """
    every = [line for line in lines(board) if line.row.suite == ALL]
    places = Counter((line.row.mode, line.row.attack) for line in every)
    # Attacks before tasks without one, then the most frequent, then by name.
    ranked = sorted(places, key=lambda place: (place[0] == "benign", -places[place], place[1] or ""))
    mode, attack = ranked[0]
    wanted = _COLUMNS.get(mode, _COLUMNS["benign"])
    chosen: dict[str, Line] = {}
    for line in sorted(every, key=lambda line: ranked.index((line.row.mode, line.row.attack))):
        chosen.setdefault(line.row.run_id, line)
    ordered = sorted(chosen.values(), key=lambda line: _rank(line.row, wanted))
    agents, references = ([line for line in ordered if line.row.reference is kind] for kind in (False, True))
    return Overview(
        board=board,
        page=page,
        attack=next(line.attack for line in every if (line.row.mode, line.row.attack) == (mode, attack)),
        columns=tuple(column for wanted_name in wanted for column in COLUMNS if column.name == wanted_name),
        agents=tuple(agents[:_MOST]),
        references=tuple(references[:_MOST]),
        left_out=max(0, len(agents) - _MOST) + max(0, len(references) - _MOST),
        others=tuple(place[1] for place in ranked[1:] if place[1] is not None),
        plot=_plot(board, mode, attack, name),
    )


def _rank(row: Row, columns: Sequence[str]) -> tuple[float | str, ...]:
    """The safest first, then the most useful; what has no value last."""
    down = {column.name: column.direction == "down" for column in COLUMNS}
    values = []
    for name in columns:
        found: Estimate | None = row.metrics.get(name)
        value = None if found is None else found.value
        values.append(2.0 if value is None else value if down[name] else 1 - value)
    return (*values, row.name, row.run_id)


def _plot(board: Board, mode: str, attack: str | None, name: str) -> Scatter | None:
    fronts = [
        front
        for front in board.fronts
        if (front.mode, front.attack, front.suite) == (mode, attack, ALL) and front.x != "cost"
    ]
    largest = max(fronts, key=lambda front: len(front.rows) + len(front.references) / 100, default=None)
    return None if largest is None else scatter(board, largest, name)
