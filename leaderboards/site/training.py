"""The curves of a training, where a run's folder holds the files that fate-gym left beside the trained model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fate_gym.episode import MAX_COUNT
from fate_gym.errors import RunError
from fate_gym.rewards import AXES
from fate_gym.storage import is_finite, read_object, records

MARK: Final = "fate-gym.json"
"""What a model was trained by; it stands in the model's folder, and in that of a run with curves."""

STEPS: Final = "steps.jsonl"
"""Beside it: a line for each step of the training."""

_SCHEMA: Final = "fate-gym/train/"
_LARGEST: Final = 20_000_000
_POINTS: Final = 300
_WIDTH, _HEIGHT = 300.0, 90.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over the steps of a training.

    Attributes:
        name: Of the number.
        points: Of a polyline, in a box of 300 x 90.
        low: Smallest value.
        high: Largest value.
        first: First value.
        last: Last value.
        steps: Number of steps.
    """

    name: str
    points: str
    low: float
    high: float
    first: float
    last: float
    steps: int


def curves(run: Path) -> list[Curve]:
    """Returns the curves of the model's training; [] if the run's folder does not hold the training's files.

    They are not looked for in the model's own folder: its path stands in the manifest, which may be a stranger's.
    """
    if _trained(run / MARK) and _small(run / STEPS):
        return list(_curves(run / STEPS))
    return []


def _small(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _LARGEST
    except OSError:
        return False


def _trained(path: Path) -> bool:
    try:
        return str(read_object(path).values.get("schema")).startswith(_SCHEMA)
    except RunError:
        return False


def _curves(path: Path) -> Iterator[Curve]:
    try:
        steps = [record for _, record in records(path)]
    except RunError:
        return
    for name, read in (("loss", _loss), *((axis, lambda step, axis=axis: _axis(step, axis)) for axis in AXES)):
        values = [value for step in steps if (value := read(step)) is not None]
        if len(values) > 1:
            yield _curve(name, values)


def _loss(step: Mapping[str, object]) -> float | None:
    return _finite(step.get("loss"))


def _axis(step: Mapping[str, object], axis: str) -> float | None:
    vector = step.get("vector")
    return _finite(vector.get(axis)) if isinstance(vector, dict) else None


def _finite(value: object) -> float | None:
    return float(value) if is_finite(value) and abs(value) <= MAX_COUNT else None


def _curve(name: str, values: list[float]) -> Curve:
    low, high = min(values), max(values)
    span = high - low or 1.0
    stride = math.ceil(len(values) / _POINTS)
    drawn = [(i, value) for i, value in enumerate(values) if i % stride == 0 or i == len(values) - 1]
    points = " ".join(
        f"{_WIDTH * i / (len(values) - 1):.1f},{_HEIGHT * (1 - (value - low) / span):.1f}" for i, value in drawn
    )
    return Curve(name, points, low, high, values[0], values[-1], len(values))
