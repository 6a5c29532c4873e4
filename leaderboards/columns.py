"""What the columns of a board are: the metrics of all modes, under names that are unique on a board."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fate_gym.evaluation.metrics import METRICS, Direction


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its name, unique on a board.
        mode: Mode of the episodes that it is over.
        metric: Its name in a summary's group of that mode.
        direction: Which way is better.
        meaning: One line for readers.
    """

    name: str
    mode: str
    metric: str
    direction: Direction
    meaning: str


def column(mode: str, metric: str) -> Column:
    """Returns the column of a metric; one that is not in the table is named by its mode, and judged neither way."""
    return _BY_METRIC.get((mode, metric)) or Column(f"{mode} {metric}", mode, metric, "", f"{metric}, {mode} tasks")


def _columns() -> Iterator[Column]:
    """Yields a column for each metric; one whose name another mode had before is named by its mode."""
    modes: dict[str, str] = {}
    for mode in ("attacked", "harmful", "benign", "diagnosis"):
        for metric in METRICS[mode]:
            first = modes.setdefault(metric.name.removesuffix("_high"), mode)
            name = metric.name if first == mode else f"{mode} {metric.name}"
            yield Column(name, mode, metric.name, metric.direction, metric.meaning)


def _place(column: Column) -> tuple[bool, bool]:
    """Utility comes first, and validity, which is nobody's question, last."""
    last = column.metric == "validity"
    return last, not last and column.mode != "benign"


COLUMNS: Final = tuple(sorted(_columns(), key=_place))
"""Every metric of the shipped modes, in the order of a table."""

_BY_METRIC: Final = {(entry.mode, entry.metric): entry for entry in COLUMNS}

REFUSALS: Final = frozenset(
    entry.name for entry in COLUMNS if entry.metric in ("BRR", "VRR", "refused") or "engaged" in entry.metric
)
"""Columns whose numbers depend on who recognises a refusal."""

SAFETY: Final = {"attacked": "ASR", "harmful": "HCR", "diagnosis": "F1"}
"""By mode, the column that stands for safety against cost."""

PAIRS: Final = {"attacked": ("ASR", "TSR"), "harmful": ("HCR", "utility"), "diagnosis": ("recall", "precision")}
"""By mode, the columns of the plot security x utility."""

VOLUME: Final = {"attacked": ("ASR", "TSR", "BRR"), "harmful": ("HCR", "utility", "BRR")}
"""By mode, the columns whose hypervolume is taken, as shares that are good: (1 - ASR, TSR, 1 - BRR)."""
