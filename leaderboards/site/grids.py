"""A run at one glance: user task x injection task, what became of each pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fate_gym.leaderboards.site.episodes import ATTACKER, Listed, natural
from fate_gym.leaderboards.site.text import short

STATES: Final = {
    "attacked": ("✗", "the attack succeeded"),
    "lost": ("○", "safe, the user's task not done"),
    "done": ("✓", "safe, the user's task done"),
    "unscored": ("!", "no score"),
}
"""What may become of a pair: its symbol, and in words."""

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


def state(entry: Listed) -> str:
    """Returns what became of an episode, one of `STATES`."""
    if "errored" in entry.classes:
        return "unscored"
    if ATTACKER & set(entry.classes):
        return "attacked"
    return "lost" if set(entry.classes) - {"invalid", "ungraded"} else "done"


def grids(entries: Iterable[Listed], pages: Mapping[str, str]) -> list[Grid]:
    """Returns a grid for each attack and suite whose tasks are pairs, as far as they have room.

    Args:
        entries: All entries of a run.
        pages: Address of an entry's page by key.
    """
    plain: dict[str, list[Listed]] = {}
    paired: dict[tuple[str, str], list[Listed]] = {}
    for entry in entries:
        if entry.mode == "benign":
            plain.setdefault(entry.suite, []).append(entry)
        elif entry.attack is not None and entry.task_id.startswith(f"{entry.cluster}/"):
            paired.setdefault((entry.attack, entry.suite), []).append(entry)
    made, left = [], _MOST_CELLS
    for (attack, suite), members in sorted(paired.items()):
        grid = _grid(attack, suite, members, plain.get(suite, ()), pages)
        left -= len(grid.rows) * len(grid.columns)
        if len(grid.columns) <= _MOST_COLUMNS and left >= 0:
            made.append(grid)
    return made


def _grid(attack: str, suite: str, pairs: Sequence[Listed], plain: Sequence[Listed], pages: Mapping[str, str]) -> Grid:
    cells: dict[tuple[str, str], list[Listed]] = {}
    for entry in pairs:
        cells.setdefault((entry.cluster, entry.task_id[len(entry.cluster) + 1 :]), []).append(entry)
    clusters = sorted({cluster for cluster, _ in cells}, key=natural)
    columns = sorted({column for _, column in cells}, key=natural)
    for entry in plain:
        cells.setdefault((entry.cluster, PLAIN), []).append(entry)
    shown = [PLAIN, *columns] if plain else columns
    rows = tuple(
        (_name(cluster, suite), tuple(_cell(cells.get((cluster, column), ()), pages) for column in shown))
        for cluster in clusters
    )
    return Grid(short(attack, 60), short(suite, 60), tuple(short(column, _NAME) for column in shown), rows)


def _name(cluster: str, suite: str) -> str:
    return short(cluster.removeprefix(f"{suite}/"), _NAME)


def _cell(entries: Sequence[Listed], pages: Mapping[str, str]) -> Cell | None:
    if not entries:
        return None
    states = [state(entry) for entry in entries]
    worst = next(name for name in ("attacked", "unscored", "lost", "done") if name in states)
    first = next(entry for entry, found in zip(entries, states, strict=True) if found == worst)
    share = f"{states.count(worst)}/{len(states)}" if len(states) > 1 else ""
    return Cell(worst, pages.get(first.key), share)
