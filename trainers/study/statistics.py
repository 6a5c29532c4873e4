"""Means over replicates, and paired differences between arms.

The unit is the replicate: a base policy of its own, a fold and a seed. Episodes within one share all of these, so they
tell nothing of how much another replicate would differ.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_EXACT = 16
"""Most replicates for which every way to flip signs is tried: 65,536 of them."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over replicates.

    Attributes:
        mean: The mean.
        low: Lower bound of the 95 % interval by Student's t; None for a single replicate.
        high: Its upper bound.
        n: Number of replicates.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of some replicates' values, at least one, with its interval."""
    centre = statistics.fmean(values)
    if len(values) == 1:
        return Mean(centre, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(centre, centre - half, centre + half, len(values))


def mean_share(values: Sequence[float]) -> Mean:
    """Returns the mean of shares in [0, 1]. Its interval is cut there: Student's t knows of no bounds."""
    uncut = mean(values)
    if uncut.low is None or uncut.high is None:
        return uncut
    return Mean(uncut.mean, max(0.0, uncut.low), min(1.0, uncut.high), uncut.n)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much two arms differ, over the replicates that have both.

    Attributes:
        difference: The mean difference with its interval.
        p: Two-sided p of the sign-flip test; None where there are more replicates than can be enumerated.
    """

    difference: Mean
    p: float | None


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> PairedDifference | None:
    """Compares two arms by their values in the same replicates: the first minus the second.

    Args:
        first: Replicate -> value.
        second: Replicate -> value.

    Returns:
        The difference; None if no replicate has both.
    """
    both = [first[name] - second[name] for name in first if name in second]
    return PairedDifference(mean(both), sign_flip_p(both)) if both else None


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Returns the exact p of a sign-flip permutation test of the mean against 0 (R. A. Fisher, 1935).

    Under the hypothesis that two arms do not differ, each replicate's difference is as likely to have either sign. The
    unit that is permuted is the replicate; with n of them, p is at least 2 / 2^n: 1/32 with six, so that five can
    never reach 0.05.
    """
    if len(differences) > _EXACT:
        return None
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in flips]
    # Sums of the same numbers in another order may differ by rounding, and are as extreme.
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)
