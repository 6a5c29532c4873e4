"""Charts as shapes: what is drawn where. A template draws them as SVG, so that every text in them is escaped.

All coordinates are in the units of the `viewBox`; colours are classes, so that one style sheet has light and dark.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fate_gym.leaderboards.board import Board, Estimate, Front, Row
from fate_gym.leaderboards.site.text import number, percent, short
from fate_gym.rendering import visible

WIDTH: Final = 480
HEIGHT: Final = 400
"""So narrow that its letters can be read on a telephone, where a unit is three quarters of a pixel."""

LEFT: Final = 60
RIGHT: Final = 12
TOP: Final = 10
BOTTOM: Final = 56
_INSET: Final = 14
"""Between the frame and 0 or 100 %, where many rows lie."""

_RADIUS: Final = 5
_LETTER: Final = 8.2
_LINE: Final = 18
_LABEL: Final = 22

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Dot:
    """One row in a plot.

    Attributes:
        x: Its place.
        y: Its place.
        whiskers: Lines (x1, y1, x2, y2) of its intervals.
        kind: "front", "beaten" or "reference".
        label: Its name.
        label_x: Where the name ends or begins.
        label_y: Its base line.
        anchor: "start" or "end".
        leader: Line from the dot to a name that stands apart; None if it stands beside.
        title: All of it in words.
        run_id: Of the run's page.
    """

    x: float
    y: float
    whiskers: tuple[Box, ...]
    kind: str
    label: str
    label_x: float
    label_y: float
    anchor: str
    leader: Box | None
    title: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """A Pareto plot.

    Attributes:
        id: Unique on its page.
        title: What is compared.
        description: The same for who does not see it.
        x_label: Of the axis.
        y_label: Of the axis.
        x_ticks: Marks.
        y_ticks: Marks.
        line: The front, as points of a polyline.
        dots: The rows, those of the front last, so that they lie on top.
        left_out: Rows of the same kind that are not drawn, by why.
        hypervolume: Of all rows together; None if unknown.
    """

    id: str
    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: str
    dots: tuple[Dot, ...]
    left_out: Mapping[str, int]
    hypervolume: float | None


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: a column, which is turned where lower is better, or the cost as it is."""

    column: str
    turned: bool
    top: float
    place: Callable[[float], float]

    @property
    def label(self) -> str:
        if self.column == "cost":
            return "USD an episode (left is better)"
        return f"{_turned(self.column) if self.turned else self.column}, %"

    def estimate(self, row: Row) -> Estimate | None:
        """What is drawn: value and bounds, higher is better unless it is the cost."""
        if self.column == "cost":
            return None if row.cost is None else Estimate(row.cost, row.cost, row.cost, 0)
        found = row.metrics.get(self.column)
        if found is None or found.value is None or found.low is None or found.high is None:
            return None
        if not self.turned:
            return found
        return Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.n)

    def ticks(self) -> tuple[Tick, ...]:
        steps = [self.top * i / 5 for i in range(6)]
        name = number if self.column == "cost" else (lambda value: f"{100 * value:.0f}")
        return tuple(Tick(self.place(step), name(step)) for step in steps)


def scatter(board: Board, front: Front, name: str) -> Scatter:
    """Draws a front of a board, with the references as marks to measure by.

    Args:
        board: The board.
        front: One of its fronts.
        name: Becomes the plot's id.
    """
    alike = [row for row in board.rows if _alike(row, front)]
    compared, references, members = set(front.rows), set(front.references), set(front.members)
    x_axis = _axis(board, front.x, alike, lambda share: LEFT + _INSET + share * (WIDTH - LEFT - RIGHT - 2 * _INSET))
    y_axis = _axis(
        board, front.y, alike, lambda share: HEIGHT - BOTTOM - _INSET - share * (HEIGHT - TOP - BOTTOM - 2 * _INSET)
    )
    points = []
    left_out: dict[str, int] = {}
    for row in alike:
        x, y = x_axis.estimate(row), y_axis.estimate(row)
        if row.key in compared | references and x is not None and y is not None:
            kind = "reference" if row.reference else "front" if row.key in members else "beaten"
            points.append((kind, row, x, y))
        else:
            reason = _why_not(row)
            left_out[reason] = left_out.get(reason, 0) + 1
    order = {"reference": 0, "beaten": 1, "front": 2}
    points.sort(key=lambda point: (order[point[0]], point[1].name, point[1].run_id))
    best = [(x.value or 0.0, y.value or 0.0) for kind, _, x, y in points if kind == "front"]
    where = f"{front.attack or front.mode}, {'all suites' if front.suite == 'all' else f'suite {front.suite}'}"
    names = ", ".join(row.name for kind, row, _, _ in points if kind == "front")
    return Scatter(
        id=name,
        title=f"{front.name}: {short(where, 120)}",
        description=_description(len(front.rows), len(front.references), names),
        x_label=x_axis.label,
        y_label=y_axis.label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        line=_staircase(best, x_axis, y_axis),
        dots=tuple(_dots(points, x_axis, y_axis)),
        left_out=left_out,
        hypervolume=None if front.x == "cost" else front.hypervolume,
    )


def _description(compared: int, references: int, names: str) -> str:
    best = f" No other is better on both axes than: {short(names, 400)}." if names else ""
    return f"{compared} agents compared, {references} references beside them.{best}"


def _alike(row: Row, front: Front) -> bool:
    return (row.mode, row.attack, row.suite, row.protocol) == (front.mode, front.attack, front.suite, front.protocol)


def _why_not(row: Row) -> str:
    if row.contaminated_by:
        return "seen in training"
    return "partial" if row.partial else "n too small, or a value unknown"


def _axis(board: Board, column: str, rows: Sequence[Row], place: Callable[[float], float]) -> _Axis:
    if column == "cost":
        top = _round_up(max((row.cost for row in rows if row.cost is not None), default=0.0))
        return _Axis(column, False, top, lambda value: round(place(value / top), 1))
    turned = any(entry.name == column and entry.direction == "down" for entry in board.columns)
    return _Axis(column, turned, 1.0, lambda value: round(place(value), 1))


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten; 1 for 0."""
    if not value > 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10, 20) if step * power >= value)


def _staircase(best: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    """The border of what the front dominates; what is dear lies right, what is secure lies right as well."""
    if not best:
        return ""
    cheap = x_axis.column == "cost"
    corners: list[tuple[float, float]] = []
    if cheap:
        points = sorted(set(best))
        level = 0.0
        for x, y in points:
            corners += [(x, level), (x, y)]
            level = y
        corners.append((x_axis.top, level))
    else:
        points = sorted(set(best))
        start = 0.0
        for x, y in points:
            corners += [(start, y), (x, y)]
            start = x
        corners.append((start, 0.0))
    return " ".join(f"{x_axis.place(x):g},{y_axis.place(y):g}" for x, y in corners)


_Point = tuple[str, Row, Estimate, Estimate]


def _dots(points: Sequence[_Point], x_axis: _Axis, y_axis: _Axis) -> Iterator[Dot]:
    """Places the dots, and their names where they cover as little as possible."""
    places = [(x_axis.place(x.value or 0.0), y_axis.place(y.value or 0.0)) for _, _, x, y in points]
    taken: list[Box] = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in places]
    for (kind, row, x, y), (at_x, at_y) in zip(points, places, strict=True):
        label = short(visible(row.name), _LABEL)
        box, anchor, apart = _free(at_x, at_y, _width(label), taken)
        taken.append(box)
        label_x = box[0] if anchor == "start" else box[2]
        label_y = round(box[3] - 5, 1)
        leader = (at_x, at_y, round(label_x, 1), round(box[1] + _LINE / 2, 1)) if apart else None
        whiskers = (
            (x_axis.place(x.low or 0.0), at_y, x_axis.place(x.high or 0.0), at_y),
            (at_x, y_axis.place(y.low or 0.0), at_x, y_axis.place(y.high or 0.0)),
        )
        yield Dot(
            x=at_x,
            y=at_y,
            whiskers=tuple(line for line in whiskers if line[:2] != line[2:]),
            kind=kind,
            label=label,
            label_x=round(label_x, 1),
            label_y=label_y,
            anchor=anchor,
            leader=leader,
            title=f"{short(row.name, 200)}: {_words(x_axis, x)}; {_words(y_axis, y)}",
            run_id=row.run_id,
        )


def _words(axis: _Axis, estimate: Estimate) -> str:
    if axis.column == "cost":
        return f"{number(estimate.value)} USD an episode"
    name = _turned(axis.column) if axis.turned else axis.column
    return f"{name} {percent(estimate.value)} % [{percent(estimate.low)}, {percent(estimate.high)}]"


def _free(x: float, y: float, width: float, taken: Sequence[Box]) -> tuple[Box, str, bool]:
    """Finds room for a label near a dot: (box, anchor, whether it stands apart)."""
    best: tuple[float, Box, str, bool] | None = None
    for ring, rise in ((0, 0), *((abs(step), step) for k in range(1, 10) for step in (-k, k))):
        for side in (1, -1):
            # Above or below the dot the name may begin nearer to it.
            gap = 9 if ring == 0 else 14
            start = x + gap if side > 0 else x - gap - width
            middle = y + rise * _LINE
            box = (start, middle - _LINE / 2, start + width, middle + _LINE / 2)
            outside = box[0] < LEFT + 2 or box[2] > WIDTH - 2 or box[1] < 2 or box[3] > HEIGHT - BOTTOM - 2
            cost = sum(_overlap(box, other) for other in taken) + (1e6 if outside else 0) + 6 * ring + (side < 0)
            if best is None or cost < best[0]:
                best = cost, box, "start" if side > 0 else "end", ring > 0
    if best is None:
        raise AssertionError("there is always a first place")
    return best[1:]


def _turned(column: str) -> str:
    return f"100 − {column}"  # noqa: RUF001 (a minus sign)


def _overlap(a: Box, b: Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _width(text: str) -> float:
    return sum(2 * _LETTER if unicodedata.east_asian_width(char) in "WF" else _LETTER for char in text)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a distribution: its place, its height and its count, in a box of 180 x 70."""

    x: float
    y: float
    height: float
    label: str
    count: int


BAR_WIDTH: Final = 24


def bars(counts: Sequence[int], labels: Sequence[str]) -> list[Bar]:
    """Draws a distribution, the highest bar 56 high; a bar that is not empty is at least 1 high."""
    most = max(counts, default=0)
    drawn = []
    for i, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = max(1.0, round(56 * count / most, 1)) if count else 0.0
        drawn.append(Bar(x=i * 30 + 3, y=round(70 - height, 1), height=height, label=label, count=count))
    return drawn
