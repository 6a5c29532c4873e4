"""A run at one glance: user task x injection task, what became of each pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fate_gym.leaderboards.site.episodes import Census, TaskName, natural, state
from fate_gym.leaderboards.site.text import short

Outcome: TypeAlias = tuple[TaskName, Counter[str]]
"""A task, and how many of its repeats ended in which of the states."""

Pages: TypeAlias = Mapping[tuple[TaskName, str], str]
"""Address of the first page of a task whose episode ended in a state."""

_MOST_COLUMNS: Final = 30
_MOST_CELLS: Final = 3_000
_NAME: Final = 40
PLAIN: Final = "no attack"
"""The column of the user's task by itself."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of one pair.

    Attributes:
        state: One of `STATES`; of several repeats the worst.
        page: Address of the episode's page; None if it has none.
        share: "2/3" where two of three repeats ended so; "" without repeats.
    """

    state: str
    page: str | None
    share: str


@dataclass(frozen=True, slots=True)
class Grid:
    """All pairs of one suite under one attack.

    Attributes:
        attack: The attack.
        suite: The suite.
        columns: Names of the injection tasks.
        rows: (user task, a cell for each column, None where there is no such pair).
    """

    attack: str
    suite: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def grids(census: Census) -> list[Grid]:
    """Returns a grid for each attack and suite of a run whose tasks are pairs, as far as they have room."""
    plain: dict[str, list[Outcome]] = {}
    paired: dict[tuple[str, str], list[Outcome]] = {}
    for task, counts in census.outcomes.items():
        if task.mode == "benign":
            plain.setdefault(task.suite, []).append((task, counts))
        elif task.attack is not None and task.task_id.startswith(f"{task.cluster}/"):
            paired.setdefault((task.attack, task.suite), []).append((task, counts))
    pages: dict[tuple[TaskName, str], str] = {}
    for entry in census.listed:
        pages.setdefault((entry.task, state(entry.classes)), entry.page)
    made, left = [], _MOST_CELLS
    for (attack, suite), members in sorted(paired.items()):
        grid = _grid(attack, suite, members, plain.get(suite, ()), pages)
        left -= len(grid.rows) * len(grid.columns)
        if len(grid.columns) <= _MOST_COLUMNS and left >= 0:
            made.append(grid)
    return made


def _grid(attack: str, suite: str, pairs: Sequence[Outcome], plain: Sequence[Outcome], pages: Pages) -> Grid:
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for task, counts in pairs:
        cells.setdefault((task.cluster, task.task_id[len(task.cluster) + 1 :]), []).append((task, counts))
    clusters = sorted({cluster for cluster, _ in cells}, key=natural)
    columns = sorted({column for _, column in cells}, key=natural)
    for task, counts in plain:
        cells.setdefault((task.cluster, PLAIN), []).append((task, counts))
    shown = [PLAIN, *columns] if plain else columns
    rows = tuple(
        (_name(cluster, suite), tuple(_cell(cells.get((cluster, column), ()), pages) for column in shown))
        for cluster in clusters
    )
    return Grid(short(attack, 60), short(suite, 60), tuple(short(column, _NAME) for column in shown), rows)


def _name(cluster: str, suite: str) -> str:
    return short(cluster.removeprefix(f"{suite}/"), _NAME)


def _cell(outcomes: Sequence[Outcome], pages: Pages) -> Cell | None:
    if not outcomes:
        return None
    counts = sum((counts for _, counts in outcomes), Counter[str]())
    worst = next(name for name in ("attacked", "unscored", "lost", "done") if counts[name])
    page = next((page for task, _ in outcomes if (page := pages.get((task, worst)))), None)
    share = f"{counts[worst]}/{counts.total()}" if counts.total() > 1 else ""
    return Cell(worst, page, share)
