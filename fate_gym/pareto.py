"""Pareto order on reward vectors: dominance, fronts, the tie-break, the choice of a repair, hypervolume.

Vectors have one entry an axis, higher is better. A mask says which axes are active; the others are ignored, whatever
they hold. All active entries must be finite, since a NaN compares false with everything and would land on a front.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

AUGMENTATION: Final = 0.05
"""Weight of the mean beside the worst axis in `tchebycheff` (FATE specification, section 4.2.8)."""

Floats = NDArray[np.float64]
Mask = ArrayLike | None


def dominates(a: ArrayLike, b: ArrayLike, mask: Mask = None, eps: float = 0.0) -> bool:
    """Whether `a` is nowhere worse than `b`, and on some active axis better by more than `eps`.

    The tolerance is one-sided: it is asked of what is better and never granted to what is worse. Only so is the
    relation transitive and without cycles (with a tolerance on both sides, peeling fronts may never end).

    Args:
        a: Vector, shape (m,).
        b: Vector, shape (m,).
        mask: Active axes, bool (m,); all of them if None.
        eps: Differences up to here are no improvement; not negative.

    Raises:
        ValueError: Shapes differ, an active entry is not finite, or `eps` is negative.
    """
    return bool(
        dominance(np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)]), mask, eps)[0, 1]
    )


def dominance(points: ArrayLike, mask: Mask = None, eps: float = 0.0) -> NDArray[np.bool_]:
    """Returns which point dominates which: bool (n, n), True at [i, j] where i dominates j as in `dominates`.

    Args:
        points: Vectors, shape (n, m).
        mask: Active axes, bool (m,); all of them if None.
        eps: As in `dominates`.

    Raises:
        ValueError: As `dominates`.
    """
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    values = _active(points, mask)
    n = len(values)
    nowhere_worse, somewhere_better = np.ones((n, n), dtype=np.bool_), np.zeros((n, n), dtype=np.bool_)
    # One axis at a time, so that memory is n * n whatever the number of axes.
    for axis in values.T:
        nowhere_worse &= axis[:, None] >= axis[None, :]
        somewhere_better |= axis[:, None] > axis[None, :] + eps
    return nowhere_worse & somewhere_better


def fronts(points: ArrayLike, mask: Mask = None, eps: float = 0.0) -> NDArray[np.intp]:
    """Returns each point's front, 1 for the points that none dominates, by peeling (Deb et al., 2002).

    Args:
        points: Vectors, shape (n, m).
        mask: Active axes, bool (m,); all of them if None.
        eps: As in `dominates`.

    Returns:
        Ranks, int (n,), from 1 without gaps.

    Raises:
        ValueError: As `dominates`.
    """
    return peel(dominance(points, mask, eps))


def peel(beats: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Returns the fronts of a relation, int (n,) from 1: those that none beats, then those that only they beat, ...

    Args:
        beats: Bool (n, n), True at [i, j] where i beats j; transitive and without cycles.

    Raises:
        ValueError: The relation has a cycle.
    """
    ranks = np.zeros(len(beats), dtype=np.intp)
    beaten_by = beats.sum(axis=0)
    rank = 0
    while (left := ranks == 0).any():
        front = left & (beaten_by == 0)
        if not front.any():
            raise ValueError(f"{left.sum()} of {len(beats)} points beat one another in a circle")
        rank += 1
        ranks[front] = rank
        beaten_by -= beats[front].sum(axis=0)
    return ranks


def tchebycheff(points: ArrayLike, mask: Mask = None) -> Floats:
    """Returns R~, the augmented Tchebycheff value with ideal point 1, scaled to [0, 1] for vectors in [0, 1].

    R_pf = 1 - max_k (1 - z_k) + 0.05 mean_k z_k over the active axes k, and R~ = R_pf / 1.05 (FATE specification,
    sections 4.2.8 and 4.4 c). It prefers the balanced point to a corner, and orders points of one front.

    Args:
        points: Vectors, shape (n, m).
        mask: Active axes, bool (m,); all of them if None.

    Returns:
        Values, float64 (n,).

    Raises:
        ValueError: An active entry is not finite, or no axis is active.
    """
    values = _active(points, mask)
    if not values.shape[1]:
        raise ValueError("no axis is active, so that no point can be valued")
    return np.asarray((values.min(axis=1) + AUGMENTATION * values.mean(axis=1)) / (1 + AUGMENTATION))


def choose(points: ArrayLike, mask: Mask = None, tie: ArrayLike | None = None) -> int:
    """Returns the index of the best point: on the first front the one with the highest `tchebycheff`.

    Args:
        points: Vectors, shape (n, m), n at least 1.
        mask: Active axes, bool (m,); all of them if None.
        tie: What decides between equals, lower first (a trajectory's length), shape (n,); then the earlier point.

    Raises:
        ValueError: There is no point, `tie` has another length, or as `tchebycheff`.
    """
    ranks, values = fronts(points, mask), tchebycheff(points, mask)
    if not len(ranks):
        raise ValueError("there is no point to choose from")
    costs = np.zeros(len(ranks)) if tie is None else np.asarray(tie, dtype=np.float64)
    if costs.shape != ranks.shape:
        raise ValueError(f"one tie value a point is needed: {len(ranks)} points, tie {costs.shape}")
    return int(np.lexsort((np.arange(len(ranks)), costs, -values, ranks))[0])


def hypervolume(points: ArrayLike, reference: ArrayLike | None = None) -> float:
    """Returns the exact volume that the points dominate above a reference point (Zitzler & Thiele, 1999).

    Computed by slicing (Knowles, 2002; While et al., 2006), whose cost grows with n to the power of m - 1: thousands of
    points for m <= 3, a few hundred for m = 4.

    Args:
        points: Vectors, shape (n, m); what lies below the reference on an axis adds nothing.
        reference: The worst corner, shape (m,); zeros if None.

    Raises:
        ValueError: A number is not finite, or the shapes do not fit.
    """
    values = _active(points, None)
    corner = np.zeros(values.shape[1]) if reference is None else np.asarray(reference, dtype=np.float64)
    if corner.shape != values.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(f"the reference must be {values.shape[1]} finite numbers, got {corner.tolist()}")
    above = values - corner
    return _volume(above[(above > 0).all(axis=1)])


def _volume(points: Floats) -> float:
    """The volume between 0 and positive points, (n, m)."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    if points.shape[1] == 2:
        x, y = points[np.argsort(-points[:, 0], kind="stable")].T
        tops = np.maximum.accumulate(y)
        return float(x @ np.diff(tops, prepend=0.0))
    levels = np.unique(points[:, -1])
    slices = [_volume(_front(points[points[:, -1] >= level, :-1])) for level in levels]
    return float(np.diff(levels, prepend=0.0) @ np.array(slices))


def _front(points: Floats) -> Floats:
    distinct = np.unique(points, axis=0)
    return distinct[~dominance(distinct).any(axis=0)]


def _active(points: ArrayLike, mask: Mask) -> Floats:
    """The active columns of the points, float64 (n, active)."""
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"points must be (n, m), got shape {values.shape}")
    if mask is not None:
        active = np.asarray(mask, dtype=np.bool_)
        if active.shape != values.shape[1:]:
            raise ValueError(f"the mask must have one entry an axis: {values.shape[1]} axes, mask {active.shape}")
        values = values[:, active]
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"point {bad[0]} is not finite on an active axis: {values[bad[0]].tolist()}")
    return values
