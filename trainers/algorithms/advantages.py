"""Advantages of groups of trajectories: two PFPO rules, and the rules to compare them with.

The first law of a PFPO rule: in any group a safe trajectory stands above an unsafe one that is as valid, and nothing
unsafe, invalid or dominated is ever reinforced. So no update, in expectation, makes obeying an injection likelier.
The first rule in the specification broke this law: where a group holds only obeying and refusing, its mean term counts
a refusal twice (in `utility` and in `over_refusal_control`), and the policy ends at obeying; see `docs/pfpo.md`.

A group is G trajectories of one task. A member whose mask differs from the group's (its episode errored, or a grader
failed) is unscored: it gets 0, and the others are compared without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fate_gym.pareto import Floats, dominance, peel, tchebycheff
from fate_gym.rewards import AXES

_SECURITY, _UTILITY, _, _VALIDITY = range(len(AXES))

# Rewards are sums of a few fractions: values that differ by less than this are equal but for rounding.
_ROUNDING = 1e-12

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Constants:
    """The numbers of the PFPO rules, as they were simulated (about 750 bandit runs; `docs/pfpo.md`).

    Attributes:
        unsafe_below: A trajectory is unsafe if security is active and below this.
        invalid_below: A trajectory is invalid if validity is below this (FATE specification, section 4.2.6).
        eps: A difference of at most this much dominates nothing (specification, section 4.4 a). Axes that are 0 or 1
            are not affected.
        unsafe_cost: Subtracted from the value of an unsafe trajectory in "safe-tchebycheff".
        invalid_cost: Subtracted from the value of an invalid trajectory; smaller, so that safe but invalid is better
            than valid but unsafe.
        scale: Divisor of "safe-tchebycheff". The group's own deviation would turn near-ties into large advantages.
        least_quality: Positive advantages are multiplied by R~, but by no less than this.
        within_front: R~ moves "safe-ranks" by at most this share of the step between fronts; below 1, so that R~
            cannot change the order of the fronts.
        near_ideal: "safe-ranks" punishes in full only in a group that reinforces a member with R~ above this.
        without_ideal: In other groups, negative advantages are multiplied by this.
        margin: An unsafe trajectory beside a safe one gets at most minus this. Our addition: it separates the two where
            both would be capped at 0, which takes six or more members worse than either.
        stabiliser: Added to a standard deviation before dividing by it, as in GRPO and TRL.
    """

    unsafe_below: float = 0.5
    invalid_below: float = 0.9
    eps: float = 0.02
    unsafe_cost: float = 0.3
    invalid_cost: float = 0.1
    scale: float = 0.35
    least_quality: float = 0.1
    within_front: float = 0.5
    near_ideal: float = 0.9
    without_ideal: float = 0.3
    margin: float = 0.01
    stabiliser: float = 1e-4


CONSTANTS: Final = Constants()


@dataclass(frozen=True, slots=True)
class Rule:
    """Computes the advantages of a group from its reward vectors.

    Called with the vectors of one group, (G, 4), and its mask, bool (4,), it returns the advantages, float64 (G,), of
    the group alone, without the step over the batch. `advantages` adds that step, and checks its arguments.

    Attributes:
        summary: One line for people.
        score: Computes scores, (G,), from the vectors and the mask of a group that has a signal.
        batch: Step over the scores of a whole batch: none, division by their standard deviation, or whitening.
        finish: Computes the advantages from vectors, mask and scores of a group: the clamps and caps.
        trl: Arguments of `GRPOConfig` with which TRL computes this rule itself; None if TRL does not have it.
    """

    summary: str
    score: Callable[[Floats, Mask], Floats]
    batch: Literal["none", "std", "whiten"] = "none"
    finish: Callable[[Floats, Mask, Floats], Floats] = lambda vectors, mask, scores: scores
    trl: Mapping[str, Any] | None = None

    def __call__(self, vectors: Floats, mask: Mask) -> Floats:
        """Returns the advantages of one group, without the step over the batch."""
        if not _differ(vectors, mask):
            return np.zeros(len(vectors))
        return self.finish(vectors, mask, self.score(vectors, mask))


def advantages(rule: str, vectors: ArrayLike, masks: ArrayLike, group_size: int) -> Floats:
    """Returns the advantages of a batch of groups.

    Args:
        rule: A name in `RULES`.
        vectors: Reward vectors in the order of `fate_gym.rewards.AXES`, (n, 4), the members of a group in a row.
        masks: Which axes count, bool (n, 4).
        group_size: G; n is a multiple of it.

    Returns:
        float64 (n,); 0 for groups in which all scored members are equal, and for unscored members.

    Raises:
        ValueError: No such rule, shapes do not fit, or a value on an active axis is not in [0, 1].
    """
    if rule not in RULES:
        raise ValueError(f"no advantage rule {rule!r}; there are: {', '.join(RULES)}")
    chosen = RULES[rule]
    values, active = _checked(vectors, masks, group_size)
    result = np.zeros(len(values))
    groups = [(rows, mask) for rows, mask in _groups(active, group_size) if _differ(values[rows], mask)]
    for rows, mask in groups:
        result[rows] = chosen.score(values[rows], mask)
    if chosen.batch == "std" and groups:
        # Only over groups with a signal: the number of the others in the batch must not change the scale.
        result /= result[np.concatenate([rows for rows, _ in groups])].std() + CONSTANTS.stabiliser
    elif chosen.batch == "whiten" and groups:
        # As TRL whitens: over all scored members, with the sample's deviation (ddof=1).
        scored = np.concatenate([rows for rows, _ in _groups(active, group_size)])
        centre, deviation = result[scored].mean(), result[scored].std(ddof=1)
        for rows, _ in groups:
            result[rows] = (result[rows] - centre) / (deviation + CONSTANTS.stabiliser)
    for rows, mask in groups:
        result[rows] = chosen.finish(values[rows], mask, result[rows])
    return result


def _checked(vectors: ArrayLike, masks: ArrayLike, group_size: int) -> tuple[Floats, Mask]:
    values, active = np.asarray(vectors, dtype=np.float64), np.asarray(masks, dtype=np.bool_)
    if values.ndim != 2 or values.shape[1] != len(AXES) or active.shape != values.shape:
        raise ValueError(f"vectors and masks must both be (n, {len(AXES)}), got {values.shape} and {active.shape}")
    if group_size < 1 or len(values) % group_size:
        raise ValueError(f"{len(values)} rows do not make groups of {group_size}")
    # Written as a negation, since every comparison with NaN is false: a NaN would make a whole group's advantages NaN.
    bad = np.argwhere(active & ~((values >= 0) & (values <= 1)))
    if bad.size:
        row, axis = bad[0].tolist()
        where = f"row {row} (group {row // group_size}, member {row % group_size})"
        raise ValueError(f"{where} has {AXES[axis]} = {values[row, axis]}: an active axis must lie in [0, 1]")
    return values, active


def _groups(active: Mask, group_size: int) -> Iterator[tuple[NDArray[np.intp], Mask]]:
    """Yields the scored rows of each group, and its mask: every axis that is active in any member."""
    for start in range(0, len(active), group_size):
        members = active[start : start + group_size]
        mask = np.asarray(members.any(axis=0))
        yield start + np.flatnonzero((members == mask).all(axis=1)), mask


def _differ(vectors: Floats, mask: Mask) -> bool:
    values = vectors[:, mask]
    return bool((values != values[:1]).any())


def _below(values: Floats, bound: float) -> Mask:
    """Compares in float32: rewards come through TRL in float32, where a validity of 0.9 is 0.89999998."""
    return np.asarray(values.astype(np.float32) < np.float32(bound))


def _unsafe(vectors: Floats, mask: Mask) -> Mask:
    return np.asarray(_below(vectors[:, _SECURITY], CONSTANTS.unsafe_below) & mask[_SECURITY])


def _invalid(vectors: Floats, mask: Mask) -> Mask:
    return np.asarray(_below(vectors[:, _VALIDITY], CONSTANTS.invalid_below) & mask[_VALIDITY])


def _beats(vectors: Floats, mask: Mask) -> Mask:
    """Returns who beats whom, bool (G, G): safety decides first, then validity, then dominance."""
    # 2, 1 and 0 order the three kinds: unsafe, safe but invalid, and the rest. With validity first, a malformed safe
    # trajectory would rank below a well-formed one that obeyed the injection.
    violation = 2 * _unsafe(vectors, mask) + _invalid(vectors, mask)
    less, same = violation[:, None] < violation, violation[:, None] == violation
    return np.asarray(less | (same & dominance(vectors, mask, CONSTANTS.eps)))


def _capped(vectors: Floats, mask: Mask, scores: Floats) -> Floats:
    """Caps scores: nothing beaten, unsafe or invalid gets more than 0, nothing unsafe beside a safe member gets 0."""
    unsafe = _unsafe(vectors, mask)
    beaten = _beats(vectors, mask).any(axis=0)
    capped = np.where(beaten | unsafe | _invalid(vectors, mask), np.minimum(scores, 0.0), scores)
    if unsafe.any() and not unsafe.all():
        capped = np.where(unsafe, np.minimum(capped, -CONSTANTS.margin), capped)
    return capped


def _by_quality(vectors: Floats, mask: Mask, scores: Floats) -> Floats:
    """Scales positive scores by quality R~.

    Doing nothing is safe and not beaten in many groups; reinforced in full, it would become the goal.
    """
    return np.where(scores > 0, scores * np.maximum(tchebycheff(vectors, mask), CONSTANTS.least_quality), scores)


def _safe_value(vectors: Floats, mask: Mask) -> Floats:
    costs = CONSTANTS.unsafe_cost * _unsafe(vectors, mask) + CONSTANTS.invalid_cost * _invalid(vectors, mask)
    # Squared, so that a step near the ideal point is worth more than one far from it.
    values = tchebycheff(vectors, mask) ** 2 - costs
    return np.asarray((values - values.mean()) / CONSTANTS.scale)


def _safe_value_finish(vectors: Floats, mask: Mask, scores: Floats) -> Floats:
    return _by_quality(vectors, mask, _capped(vectors, mask, scores))


def pareto_rewards(vectors: Floats, mask: Mask) -> Floats:
    """Returns the Pareto rewards of "safe-ranks", (G,): the front decides, R~ orders within a front.

    r_i = -(rank_i - 1) / max(F - 1, 1) + b R~_i with b = 0.5 / max(F - 1, 1), for F fronts of the safe-first order
    (FATE specification, section 4.4 c). A better rank always wins, by at least 0.5 / (F - 1).

    Args:
        vectors: Reward vectors of one group, (G, 4).
        mask: Its active axes, bool (4,).
    """
    ranks = peel(_beats(vectors, mask))
    steps = max(int(ranks.max()) - 1, 1)
    return np.asarray((CONSTANTS.within_front * tchebycheff(vectors, mask) - (ranks - 1)) / steps)


def _safe_ranks(vectors: Floats, mask: Mask) -> Floats:
    return _standardised(pareto_rewards(vectors, mask))


def _safe_ranks_finish(vectors: Floats, mask: Mask, scores: Floats) -> Floats:
    first = ~_beats(vectors, mask).any(axis=0)
    no_zero = (vectors[:, mask] > 0).all(axis=1)
    # A member of the best front is not punished for standing below the group's mean, unless it fails on an axis.
    if not first.all():
        scores = np.where(first & no_zero, np.maximum(scores, 0.0), scores)
    scores = _capped(vectors, mask, scores)
    if mask[_UTILITY]:
        # Where somebody shows that the task can be done safely, doing none of it is not reinforced.
        helps = vectors[:, _UTILITY] > 0
        if (helps & ~_unsafe(vectors, mask) & ~_invalid(vectors, mask)).any():
            scores = np.where(helps, scores, np.minimum(scores, 0.0))
    scores = _by_quality(vectors, mask, scores)
    # Without a nearly ideal member, pushing others down moves probability to behaviours that are no better.
    if not (tchebycheff(vectors, mask)[scores > 0] > CONSTANTS.near_ideal).any():
        scores = np.where(scores < 0, scores * CONSTANTS.without_ideal, scores)
    return scores


def _standardised(values: Floats) -> Floats:
    """Returns (values - mean) / deviation; exactly 0 where all values are equal but for rounding."""
    if np.ptp(values) < _ROUNDING:
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / (values.std() + CONSTANTS.stabiliser))


def _weighted_sum(vectors: Floats, mask: Mask) -> Floats:
    return _standardised(vectors[:, mask].mean(axis=1))


def _each_standardised(vectors: Floats, mask: Mask) -> Floats:
    return np.asarray(np.sum([_standardised(axis) for axis in vectors[:, mask].T], axis=0))


def _security_only(vectors: Floats, mask: Mask) -> Floats:
    return _standardised(vectors[:, _SECURITY]) if mask[_SECURITY] else np.zeros(len(vectors))


RULES: Final[dict[str, Rule]] = {
    "safe-tchebycheff": Rule(
        "PFPO: (R~)^2 less costs of unsafe and invalid, from the group's mean, on a fixed scale; capped",
        _safe_value,
        finish=_safe_value_finish,
    ),
    "safe-ranks": Rule(
        "PFPO: fronts of the safe-first order, R~ within a front, standardised; capped",
        _safe_ranks,
        "std",
        _safe_ranks_finish,
    ),
    "weighted-sum": Rule("GRPO on the mean of the active axes", _weighted_sum, trl={}),
    "gdpo": Rule(
        "GDPO: each axis standardised in its group, then summed and whitened",
        _each_standardised,
        "whiten",
        trl={"multi_objective_aggregation": "normalize_then_sum"},
    ),
    "security-only": Rule(
        "GRPO on security alone",
        _security_only,
        trl={"reward_weights": [float(axis == "security") for axis in AXES]},
    ),
}
"""Advantage rules by name. Where TRL has a rule, it computes the rule in training, and ours decides what a signal is:
deviations within a group are the population's here and the sample's there, a constant factor sqrt(1 - 1/G), which
GDPO's whitening removes again."""
