"""Paired comparison of two systems on the same tasks: the difference of a metric, its interval and its p-value.

Three tests, and every difference says which it got:

- "mcnemar": one pair a task, both values 0 or 1. McNemar's exact test (1947), with Newcombe's interval for the
  difference of paired proportions (1998, method 10), which keeps its width where the two never differ.
- "clustered bootstrap": everything else. Whole tasks are drawn with replacement, both systems together; the p-value is
  that of swapping the systems' results within tasks at random, which is exact under the hypothesis of no difference.
  Where the systems differ on a handful of tasks alone, the interval is too narrow and the p-value is the one to trust.
- "none": no pair, or no value on one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fate_gym.evaluation.intervals import wilson

Floats = NDArray[np.float64]

RESAMPLES: Final = 2000
_CHUNK: Final = 1_000_000
"""Random numbers held in memory at once."""

_ROUNDING: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A.

    Attributes:
        a: The first system's mean; None without values.
        b: The second's.
        value: b - a; None where one of them is.
        low: Lower bound of the 95 % interval.
        high: Upper bound.
        p: Two-sided p-value of no difference.
        n: Pairs.
        clusters: Tasks that they belong to.
        test: "mcnemar", "clustered bootstrap" or "none".
    """

    a: float | None
    b: float | None
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    clusters: int
    test: str


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test.

    Args:
        only_a: Pairs in which only the first system succeeded.
        only_b: Pairs in which only the second did.

    Raises:
        ValueError: A count is negative.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts must not be negative, got {only_a} and {only_b}")
    n, least = only_a + only_b, min(only_a, only_b)
    ways = np.arange(1, least + 1)
    # Logarithms of C(n, k) / 2^n for k = 0 .. least.
    logs = np.concatenate(([0.0], np.cumsum(np.log((n - ways + 1) / ways)))) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def paired_proportions(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Returns the 95 % interval of b - a for paired proportions (Newcombe, 1998, method 10).

    Args:
        both: Pairs in which both systems succeeded.
        only_a: Only the first.
        only_b: Only the second.
        neither: Neither.

    Raises:
        ValueError: The runs have no pair.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        raise ValueError("there is no pair to compare")
    first, second = wilson(both + only_a, n), wilson(both + only_b, n)
    a, b = (both + only_a) / n, (both + only_b) / n
    below_a, above_a = a - float(first.low or 0), float(first.high or 0) - a
    below_b, above_b = b - float(second.low or 0), float(second.high or 0) - b
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    # Method 10's correction for continuity.
    corrected = max(covariance - n / 2, 0.0) if covariance > 0 else float(covariance)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    return max(-1.0, b - a - reach(below_b, above_a)), min(1.0, b - a + reach(above_b, below_a))


def difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    *,
    curve: Callable[[Floats], Floats] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compares two systems on pairs of episodes.

    Args:
        a: The first system's values, shape (n,); NaN where the metric does not apply to its episode.
        b: The second's, in the same order.
        clusters: The task that each pair belongs to, as a name or a number, (n,).
        curve: Maps means, elementwise, to what is compared (F1 from its Jaccard index, say).
        resamples: Of the bootstrap, and of the swaps.
        seed: Of both.

    Raises:
        ValueError: The lengths differ, or a value is infinite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    tasks = np.asarray(clusters)
    if not (first.ndim == 1 and first.shape == second.shape == tasks.shape):
        raise ValueError(f"pairs need values of both: a {first.shape}, b {second.shape}, clusters {tasks.shape}")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("values must be finite, or NaN where the metric does not apply")
    tables, n = _tables(first, second, tasks)
    total = tables.sum(axis=0)
    if not (total[1] and total[3]):
        one, other = (float(total[i] / total[i + 1]) if total[i + 1] else None for i in (0, 2))
        return Difference(one, other, None, None, None, None, n, len(tables), "none")
    mean_a, mean_b = _means(total[None, :], curve)[:, 0].tolist()
    if curve is None and len(tables) == n and np.isin(tables, (0, 1)).all() and (tables[:, [1, 3]] == 1).all():
        low, high, p = _exact(tables[:, 0], tables[:, 2])
        return Difference(mean_a, mean_b, mean_b - mean_a, low, high, p, n, n, "mcnemar")
    rng = np.random.default_rng(seed)
    low, high = _bootstrap(tables, curve, resamples, rng)
    p = _swaps(tables, curve, resamples, rng)
    return Difference(mean_a, mean_b, mean_b - mean_a, low, high, p, n, len(tables), "clustered bootstrap")


def _tables(a: Floats, b: Floats, clusters: NDArray[Any]) -> tuple[Floats, int]:
    """Returns (sum of a, number of a, sum of b, number of b) of each task, (clusters, 4), and the number of pairs.

    Pairs to which the metric applies on neither side are left out, and so are tasks without any pair.
    """
    counted = ~(np.isnan(a) & np.isnan(b))
    a, b = a[counted], b[counted]
    names, labels = np.unique(clusters[counted], return_inverse=True)
    size = len(names)
    # Sorted, so that the rounding of the sums does not depend on the order of the input.
    columns = []
    for values in (a, b):
        order = np.lexsort((values, labels))
        known = ~np.isnan(values[order])
        columns.append(np.bincount(labels[order], weights=np.where(known, values[order], 0.0), minlength=size))
        columns.append(np.bincount(labels[order], weights=known, minlength=size))
    return np.stack(columns, axis=1).astype(np.float64), len(labels)


def _means(totals: Floats, curve: Callable[[Floats], Floats] | None) -> Floats:
    """Means of a and b, (2, k), from totals (k, 4); NaN where a resample holds no value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack([totals[:, 0] / totals[:, 1], totals[:, 2] / totals[:, 3]])
    return means if curve is None else curve(means)


def _exact(a: Floats, b: Floats) -> tuple[float, float, float]:
    both, only_a, only_b = (int((x * y).sum()) for x, y in ((a, b), (a, 1 - b), (1 - a, b)))
    low, high = paired_proportions(both, only_a, only_b, len(a) - both - only_a - only_b)
    return low, high, mcnemar(only_a, only_b)


def _bootstrap(
    tables: Floats, curve: Callable[[Floats], Floats] | None, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the difference."""
    n = len(tables)
    rows = max(1, _CHUNK // n)
    parts = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(n, size=(size, n), dtype=np.int32) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        mean_a, mean_b = _means(times @ tables, curve)
        parts.append(mean_b - mean_a)
    differences = np.concatenate(parts)
    low, high = np.nanquantile(differences, [0.025, 0.975]).tolist()
    return _recovered(tables, curve) if high - low <= _ROUNDING else (low, high)


def _recovered(tables: Floats, curve: Callable[[Floats], Floats] | None) -> tuple[float, float]:
    """Where all tasks agree a bootstrap would claim certainty. The interval from those of both means.

    Each mean gets Wilson's interval of as many trials as there are tasks; the two are joined as those of independent
    means (Zou & Donner, 2008), which is too wide, if anything, for systems that find the same tasks hard.
    """
    n, totals = len(tables), tables.sum(axis=0)
    sides = []
    for mean in (totals[0] / totals[1], totals[2] / totals[3]):
        bounds = wilson(min(1.0, float(mean)) * n, n)
        side = np.array([[bounds.low, mean, bounds.high]], dtype=np.float64)
        sides.append((side if curve is None else curve(side))[0].tolist())
    (low_a, a, high_a), (low_b, b, high_b) = sides
    return max(-1.0, b - a - math.hypot(b - low_b, high_a - a)), min(1.0, b - a + math.hypot(high_b - b, a - low_a))


def _swaps(tables: Floats, curve: Callable[[Floats], Floats] | None, resamples: int, rng: np.random.Generator) -> float:
    """The share of random swaps of the systems within tasks whose difference is at least the one seen."""
    swapped = tables[:, [2, 3, 0, 1]]
    gain = swapped - tables
    differs = (gain != 0).any(axis=1)
    total, gain = tables.sum(axis=0), gain[differs]
    if not len(gain):
        return 1.0
    seen = abs(float(np.diff(_means(total[None, :], curve)[:, 0])[0]))
    rows = max(1, _CHUNK // len(gain))
    extreme = 0
    for start in range(0, resamples, rows):
        swap = rng.integers(2, size=(min(rows, resamples - start), len(gain)), dtype=np.int8)
        mean_a, mean_b = _means(total + swap @ gain, curve)
        extreme += int((np.abs(mean_b - mean_a) >= seen - _ROUNDING).sum())
    return (extreme + 1) / (resamples + 1)
