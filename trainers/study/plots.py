"""Pictures of a training run: metrics over rounds, acceptance of repairs, and the fronts they were chosen from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fate_gym.pareto import fronts as front_ranks
from fate_gym.rewards import AXES
from fate_gym.trainers.study.figure import BLUE, COLOURS, ORANGE, VERMILION, panels
from fate_gym.trainers.study.records import Row

_SECURITY, _UTILITY = AXES.index("security"), AXES.index("utility")
_MANY: Final = 20

_TITLES: Final = {
    "ASR": "ASR: attack success (less is better)",
    "TSR": "TSR: task success under attack",
    "BRR": "BRR: benign tasks refused (less is better)",
    "earned_utility": "Earned utility: benign task success",
    "validity": "Validity of calls",
    "reached": "Reached: injection was delivered",
    "harm_score": "Harm done on request (less is better)",
    "hypervolume": "Hypervolume of (1 - ASR, TSR, 1 - BRR)",
}


def metrics_over_rounds(path: Path, rounds: Sequence[Row]) -> None:
    """Draws each metric over the rounds in a panel of its own, with its interval as a band.

    Args:
        path: The PNG file.
        rounds: For each round, the first being the policy before training, metric -> `value`, `low` and `high`, or a
            number without interval (the hypervolume). What is missing or None leaves a gap; other keys are ignored.

    Raises:
        ValueError: There is no round, or no metric in any.
    """
    names = [name for name in _TITLES if any(name in row for row in rounds)]
    if not names:
        raise ValueError("there is no metric to draw")
    numbers = np.arange(len(rounds))
    with panels(path, len(names), columns=4, width=3.4, height=2.6) as drawn:
        for axes, name in zip(drawn, names, strict=True):
            value, low, high = (_column(rounds, name, part) for part in ("value", "low", "high"))
            axes.fill_between(numbers, low, high, color=BLUE, alpha=0.18, linewidth=0)
            axes.plot(numbers, value, color=BLUE, marker="o", markersize=4)
            axes.set(title=_TITLES[name], xlabel="round", ylim=(-0.03, 1.03))
            axes.set_xticks(numbers)


def acceptance(path: Path, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Draws what share of the repair candidates pass, in all and axis by axis: a panel a mode, a group of bars a round.

    Args:
        path: The PNG file.
        rounds: For each round, mode -> `acceptance`, `by_axis` (axis -> share) and `candidates` (their number), as the
            selection stage counts them under `modes`; shares that are None have no bar.

    Raises:
        ValueError: There is no round, or no mode in any.
    """
    modes = _names(rounds)
    if not modes:
        raise ValueError("there is no repair candidate to draw the acceptance of")
    width = 0.8 / (1 + len(AXES))
    with panels(path, len(modes), columns=3, width=4.6, height=3.0) as drawn:
        for axes, mode in zip(drawn, modes, strict=True):
            counted = [modes_of_round.get(mode, {}) for modes_of_round in rounds]
            bars = {"accepted": [entry.get("acceptance") for entry in counted]}
            bars |= {axis: [entry.get("by_axis", {}).get(axis) for entry in counted] for axis in AXES}
            for number, (name, shares) in enumerate(bars.items()):
                places = np.arange(len(rounds)) + (number - len(AXES) / 2) * width
                heights = [share or 0.0 for share in shares]
                axes.bar(places, heights, width, color=COLOURS[number], label=name.replace("_", " "))
            labels = [f"{n}\nn = {entry.get('candidates', 0)}" for n, entry in enumerate(counted, start=1)]
            axes.set_xticks(range(len(rounds)), labels)
            axes.set(title=f"Repair candidates, {mode}", xlabel="round", ylabel="share that passes", ylim=(0, 1.03))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncol=3, columnspacing=1.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A repair candidate of a round.

    Attributes:
        vector: Its reward vector, (4,).
        mask: Which axes count, (4,).
        chosen: Whether it became the repair of its failure.
    """

    vector: Sequence[float]
    mask: Sequence[bool]
    chosen: bool


def fronts(path: Path, rounds: Sequence[Sequence[Candidate]]) -> None:
    """Draws the repair candidates of each round by utility and security, the chosen ones, and the front of all.

    Values are often 0 or 1, so equal candidates share one disc, whose area is their number. Candidates without both
    axes (of benign and of harmful tasks) are left out.

    Args:
        path: The PNG file.
        rounds: The candidates of each round.

    Raises:
        ValueError: There is no round.
    """
    if not rounds:
        raise ValueError("there is no round to draw the fronts of")
    with panels(path, len(rounds), columns=3, width=3.8, height=3.6) as drawn:
        for number, (axes, candidates) in enumerate(zip(drawn, rounds, strict=True), start=1):
            comparable = [one for one in candidates if one.mask[_SECURITY] and one.mask[_UTILITY]]
            places = [(one.vector[_UTILITY], one.vector[_SECURITY]) for one in comparable]
            chosen = [place for place, one in zip(places, comparable, strict=True) if one.chosen]
            # At least `_MANY`, so that a disc that stands for one candidate is never large.
            most = max([*Counter(places).values(), _MANY])
            axes.axhspan(-0.1, 0.5, color=VERMILION, alpha=0.07, linewidth=0)
            _discs(axes, places, most, f"candidates ({len(places)})", "0.75")
            _discs(axes, chosen, most, f"chosen ({len(chosen)})", ORANGE)
            for place, count in Counter(places).items():
                if count > 1:
                    axes.annotate(str(count), place, (0, 14), textcoords="offset points", ha="center", fontsize=7)
            if places:
                values = np.array(places)
                front = np.unique(values[front_ranks(values) == 1], axis=0)
                style: dict[str, Any] = {"color": BLUE, "marker": "D", "markersize": 4, "drawstyle": "steps-pre"}
                axes.plot(*front.T, label="front of all", zorder=3, **style)
            axes.set(title=f"Round {number}", xlabel="utility", ylabel="security", xlim=(-0.1, 1.1), ylim=(-0.1, 1.1))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=3, handletextpad=0.3, columnspacing=0.8)


def _discs(axes: Any, places: Sequence[tuple[float, float]], most: int, label: str, colour: str) -> None:
    counts = Counter(places)
    x, y = [place[0] for place in counts], [place[1] for place in counts]
    sizes = [20 + 600 * count / most for count in counts.values()]
    axes.scatter(x, y, s=sizes, color=colour, alpha=0.8, linewidth=0, zorder=2)
    # An empty scatter, so that the legend's disc has one size whatever the counts.
    axes.scatter([], [], s=30, color=colour, label=label)


def _names(rows: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _column(rounds: Sequence[Row], name: str, part: str) -> Any:
    """One part of a metric over the rounds, NaN where there is none, float64 (rounds,)."""
    cells = [row.get(name) for row in rounds]
    entries = [cell if isinstance(cell, Mapping) else {"value": cell} for cell in cells]
    values = [entry.get(part) for entry in entries]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
