"""Rates with their intervals, and pass^k.

Episodes that share a user task are not independent, so a rate over them is an average over *clusters*: its interval
must be computed from how far the tasks differ, not from the number of episodes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SAME = 1e-12
"""Variances and distances from 0 and 1 up to here are rounding."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its confidence interval.

    Attributes:
        value: The mean; None for n == 0, as are the bounds.
        low: Lower bound.
        high: Upper bound.
        n: Number of values behind it (episodes, not clusters).
        method: How the bounds were computed.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def wilson(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """Returns the Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927), without continuity correction.

    Args:
        successes: How many of the n succeeded; a fraction where units succeed in part.
        n: Number of independent units; a fraction where it is an effective one. `Estimate.n` is rounded down.
        confidence: Level, in (0, 1).

    Raises:
        ValueError: Not 0 <= successes <= n, or no valid level.
    """
    z = NormalDist().inv_cdf(1 - _tail(confidence))
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, not {successes} of {n}")
    if n == 0:
        return Estimate(None, None, None, 0, "wilson")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, int(n), "wilson")


def rate(values: ArrayLike, clusters: Sequence[str], counts: ArrayLike | None = None) -> Estimate:
    """Returns a rate with its 95% interval; `method` is "wilson" or "clustered wilson".

    Where every cluster holds one value, 0 or 1, that is Wilson's interval. Elsewhere it is Wilson's with as many trials
    as the values are worth, n over their design effect (Korn & Graubard, 1998; Dean & Pagano, 2015, found it to hold
    best at low rates). Few clusters tell little of that effect, and those without the rarer outcome nothing, so that
    the estimate is weighed against the largest possible effect, which stands for one more cluster: a rate of 0 (ASR 0
    of 949) gets the interval of as many trials as there are *clusters*.

    In simulations of 5 to 97 clusters of 4 or 10 outcomes, at rates from 0.03 to 0.9 and intraclass correlations from
    0 to 0.6, 93 to 99.9% of these intervals held the truth; of percentile bootstrap intervals as few as 77%.

    Args:
        values: Outcomes in [0, 1], shape (n,).
        clusters: What each outcome shares with others, its task, length n.
        counts: How often each outcome came, shape (n,); once each if not given. A million episodes have few outcomes.

    Raises:
        ValueError: A value is outside [0, 1] or NaN, or the lengths differ.
    """
    numbers = _checked(values, clusters)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() <= 1):
        raise ValueError("values must be in [0, 1]")
    times = np.ones_like(numbers) if counts is None else np.asarray(counts, dtype=np.float64)
    sums, sizes = _by_cluster(numbers, times, clusters)
    n = int(times.sum())
    if sums.size == n and np.isin(numbers, (0, 1)).all():
        return wilson(int(sums.sum()), n)
    mean = min(1.0, float(sums.sum() / n))
    # Sorted, so that the rounding of sums does not depend on the order of the input.
    order = np.argsort(numbers, kind="stable")
    variance = float(times[order] @ (numbers[order] - mean) ** 2) / n
    trials = _effective_size(variance, sums, sizes, mean)
    bounds = wilson(mean * trials, trials)
    return Estimate(mean, bounds.low, bounds.high, n, "clustered wilson")


def _effective_size(variance: float, sums: NDArray[np.float64], sizes: NDArray[np.float64], mean: float) -> float:
    """Returns the number of independent coin flips that tell as much of the mean as some values.

    Args:
        variance: Of all values.
        sums: Their sum in each cluster, (k,).
        sizes: Their number in each cluster, (k,).
        mean: Of all values.
    """
    n, k = float(sizes.sum()), sums.size
    # The design effect if all values of a cluster were copies of one (Kish, 1965).
    largest = float(sizes @ sizes) / n
    coin = mean * (1 - mean)
    if coin <= _SAME:
        return n / largest
    effect = largest
    if k > 1 and variance > _SAME:
        residuals = sums - mean * sizes
        effect = float(np.clip(k / (k - 1) * (residuals @ residuals) / (n * variance), 1.0, largest))
    telling = np.count_nonzero(sums > _SAME if mean <= 0.5 else sizes - sums > _SAME)
    effect = (telling * effect + largest) / (telling + 1)
    # Graded values vary less than coin flips of the same mean; one cluster's weight again says that they may not.
    graded = (k * variance / coin + 1) / (k + 1)
    return n / (effect * graded)


def pass_hat_k(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    """Returns pass^k, the probability that k repeats of a task *all* succeed, averaged over tasks.

    The unbiased estimate of tau-bench (Yao et al., 2024), C(c, k) / C(n, k): the counterpart of the pass@k of Chen et
    al. (2021), where one success is enough.

    Args:
        counts: (c successes, n repeats) of each task; tasks with n < k are left out.
        k: Number of repeats, at least 1.

    Returns:
        A probability, or None if no task has k repeats.

    Raises:
        ValueError: k < 1, or not 0 <= c <= n.
    """
    if k < 1 or any(not 0 <= c <= n for c, n in counts):
        raise ValueError(f"k must be at least 1 and each count 0 <= c <= n, not k = {k}, counts = {counts}")
    probabilities = [math.comb(c, k) / math.comb(n, k) for c, n in counts if n >= k]
    return math.fsum(probabilities) / len(probabilities) if probabilities else None


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), not {confidence}")
    return (1 - confidence) / 2


def _checked(values: ArrayLike, clusters: Sequence[str]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(clusters),):
        raise ValueError(f"one cluster a value is needed: values {numbers.shape}, clusters ({len(clusters)},)")
    if not np.isfinite(numbers).all():
        raise ValueError("values must be finite: an episode without a score belongs to the errors, not to a rate")
    return numbers


def _by_cluster(
    numbers: NDArray[np.float64], times: NDArray[np.float64], clusters: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns each cluster's sum and number of values, float64 (clusters,) both, in the order of the names."""
    index = {name: i for i, name in enumerate(sorted(set(clusters)))}
    labels = np.array([index[name] for name in clusters], dtype=np.intp)
    # Sorted, so that the rounding of the sums does not depend on the order of the input.
    order = np.lexsort((times, numbers, labels))
    labels, times = labels[order], times[order]
    sums = np.bincount(labels, weights=numbers[order] * times)
    return sums.astype(np.float64), np.bincount(labels, weights=times).astype(np.float64)
