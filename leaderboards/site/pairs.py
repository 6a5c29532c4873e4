"""Runs in pairs: their differences task by task, the tasks where they part, and two traces side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from fate_gym.episode import Episode
from fate_gym.errors import UsageError
from fate_gym.leaderboards.comparison import Compared, Comparison, compare
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.site.episodes import CLASSES, STATES, Census, Listed, state
from fate_gym.leaderboards.site.gist import Gist, gist
from fate_gym.leaderboards.site.text import Budget, write_page
from fate_gym.leaderboards.site.traces import Entry, Trace, trace

MOST_RUNS: Final = 8
"""Runs of a board that are compared, each with each; a site of fewer runs compares the others."""

_MOST_SIDES: Final = 400
"""Pages of a board that show two traces side by side, shared among its pairs; the others link to both traces."""

_MOST_PARTED: Final = 300
"""Tasks of a pair that are listed in each group."""

_COLUMNS: Final = ("ASR", "TSR", "HCR", "VRR", "utility", "BRR", "accuracy", "F1")
"""Columns of the table of pairs, those that there are."""

_ORDER: Final = ("attacked", "unscored", "lost", "done")
_PAGE: Final = 150_000
"""Bytes of the texts of each of two traces on a page."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A run with all that its pages need of the others' kind.

    Attributes:
        run: The run.
        census: What is in it.
    """

    run: LoadedRun
    census: Census

    @property
    def name(self) -> str:
        """Agent and defences."""
        return str(self.run.summary["agent"])


@dataclass(frozen=True, slots=True)
class Parted:
    """A task on which two runs part: the entry of each, and the page that shows both; None if there is none."""

    first: Listed
    second: Listed
    side: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of a board.

    Attributes:
        a: The first.
        b: The second.
        folder: Its name below `compare/`.
        comparison: Every metric's difference, b minus a.
        shared: Number of tasks that both have.
        groups: Tasks by what became of them: (state in a, state in b, number, those listed).
    """

    a: Surveyed
    b: Surveyed
    folder: str
    comparison: Comparison
    shared: int
    groups: tuple[tuple[str, str, int, tuple[Parted, ...]], ...]

    def row(self, column: str) -> Compared | None:
        """Returns the difference in a column, under the first attack that has it."""
        return next((row for row in self.comparison.rows if row.column.name == column), None)


def pairs(runs: Sequence[Surveyed]) -> list[Pair]:
    """Pairs the first runs of a board, as far as they share an episode."""
    chosen = runs[:MOST_RUNS]
    most = _MOST_SIDES // max(1, len(chosen) * (len(chosen) - 1) // 2)
    return [pair for a, b in combinations(chosen, 2) if (pair := _pair(a, b, most)) is not None]


def _pair(a: Surveyed, b: Surveyed, most: int) -> Pair | None:
    try:
        comparison = compare(a.run, b.run, every_suite=False)
    except UsageError:
        return None
    mine, theirs = a.census.keys.shared(b.census.keys)
    # Both states in one number.
    names = list(STATES)
    became = a.census.states[mine] * len(names) + b.census.states[theirs]
    numbers, times = np.unique(became, return_counts=True)
    counts = {
        (names[number // len(names)], names[number % len(names)]): count
        for number, count in zip(numbers.tolist(), times.tolist(), strict=True)
    }
    pages = {entry.key: entry for entry in b.census.listed}
    both = [(entry, pages[entry.key]) for entry in a.census.listed if entry.key in pages]
    left, groups = most, []
    for states in sorted(counts, key=lambda found: tuple(map(_ORDER.index, found))):
        if states[0] == states[1]:
            continue
        parted = [pair for pair in both if (state(pair[0].classes), state(pair[1].classes)) == states]
        # The gravest group must not leave the others without a page.
        share = min(len(parted), max(1, left // 2))
        left -= share
        listed = [
            Parted(one, other, one.page if i < share and _scored(one) and _scored(other) else None)
            for i, (one, other) in enumerate(parted[:_MOST_PARTED])
        ]
        groups.append((*states, counts[states], tuple(listed)))
    return Pair(a, b, f"{a.run.run_id}--{b.run.run_id}", comparison, len(mine), tuple(groups))


def _scored(entry: Listed) -> bool:
    """Whether there is a trace to show: one that errored ends where a server did, and some are not published."""
    return "errored" not in entry.classes and not entry.hidden


def write_pairs(made: Sequence[Pair], board: tuple[str, str], out: Path, common: Mapping[str, object]) -> None:
    """Writes the page of a board's pairs, one for each pair, and those with two traces.

    Args:
        made: The pairs.
        board: Name and address of the board, the address from the site's top.
        out: The site's folder.
        common: What every page reads.
    """
    shared = {**common, "board": board, "states": STATES, "meanings": CLASSES}
    name = Path(board[1]).name
    (out / "compare").mkdir(exist_ok=True)
    present = {row.column.name for pair in made for row in pair.comparison.rows}
    columns = [column for column in _COLUMNS if column in present]
    write_page(out / "compare" / name, "pairs", "../", {**shared, "pairs": made, "columns": columns, "most": MOST_RUNS})
    for pair in made:
        folder = out / "compare" / pair.folder
        folder.mkdir(exist_ok=True)
        write_page(folder / "index.html", "pair", "../../", {**shared, "pair": pair, "index": name})
    for pair, parted, first, second in _sides(made):
        below = "../" * str(parted.side).count("/")
        path = out / "compare" / pair.folder / str(parted.side)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"pair": pair, "parted": parted, "index": name, "top": below, "sides": sides(first, second)}
        write_page(path, "side", f"../../{below}", {**shared, **values})


def _sides(made: Sequence[Pair]) -> Iterator[tuple[Pair, Parted, Episode, Episode]]:
    """Reads the episodes that stand side by side, one pair of them at a time."""
    for pair in made:
        apart = [parted for _, _, _, listed in pair.groups for parted in listed if parted.side]
        first = pair.a.run.episodes.of_each(parted.first.key for parted in apart)
        second = pair.b.run.episodes.of_each(parted.second.key for parted in apart)
        for parted, one, other in zip(apart, first, second, strict=True):
            yield pair, parted, one, other


@dataclass(frozen=True, slots=True)
class Sides:
    """Two traces of one task.

    Attributes:
        alike: What both begin with.
        first: The first trace, its gist, and its messages from where they part.
        second: The second's.
    """

    alike: tuple[Entry, ...]
    first: tuple[Trace, Gist, tuple[Entry, ...]]
    second: tuple[Trace, Gist, tuple[Entry, ...]]


def sides(first: Episode, second: Episode) -> Sides:
    """Puts two traces of one task side by side, from where they part."""
    one, other = trace(first, Budget(_PAGE)), trace(second, Budget(_PAGE))
    at = next(
        (i for i, (a, b) in enumerate(zip(one.entries, other.entries, strict=False)) if _said(a) != _said(b)),
        min(len(one.entries), len(other.entries)),
    )
    return Sides(
        one.entries[:at],
        (one, gist(first, one), one.entries[at:]),
        (other, gist(second, other), other.entries[at:]),
    )


def _said(entry: Entry) -> object:
    """What makes two messages alike: all but the ids of calls, which a server may draw at random."""
    return entry.role, entry.text, [(call.name, call.gist, call.arguments, call.answer) for call in entry.calls]
