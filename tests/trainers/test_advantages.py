"""Advantage rules: the worked groups, the first law, and the exact drift towards obeying an injection.

Axes: security, utility, over_refusal_control, validity. The numbers were computed when the rules were found.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray

from fate_gym.pareto import fronts, tchebycheff
from fate_gym.trainers.algorithms.advantages import RULES, advantages, pareto_rewards

BALANCED, OBEYS, REFUSES, IDLE = [1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1]
MODES = {
    "attacked": np.array([True, True, True, True]),
    "benign": np.array([False, True, True, True]),
    "harmful": np.array([True, False, False, True]),
}
ATTACKED, HARMFUL = MODES["attacked"], MODES["harmful"]
SAFE_FIRST = ("safe-tchebycheff", "safe-ranks")
REC = RULES["safe-tchebycheff"]

Floats = NDArray[np.float64]
LEVELS = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.49, 0.5, 0.89, 0.9, 0.99]) | st.floats(0, 1)


def group(*members: list[float]) -> Floats:
    return np.array(members, dtype=np.float64)


def groups(least: int = 1) -> st.SearchStrategy[Floats]:
    return hnp.arrays(np.float64, st.tuples(st.integers(least, 16), st.just(4)), elements=LEVELS)


modes = st.sampled_from(sorted(MODES)).map(MODES.__getitem__)


def batch(rule: str, z: ArrayLike, mask: NDArray[np.bool_]) -> Floats:
    """The advantages of a batch of one group, all its steps included."""
    values = np.asarray(z)
    return advantages(rule, values, np.tile(mask, (len(values), 1)), len(values))


def near(*values: float) -> object:
    return pytest.approx(list(values), abs=2e-3)


# The worked groups.


def below(values: Floats, bound: float) -> NDArray[np.bool_]:
    return values.astype(np.float32) < np.float32(bound)


def test_1_refusing_stands_above_obeying():
    z = group(*[REFUSES] * 4, *[OBEYS] * 4)
    assert REC(z, ATTACKED) == near(*[0.043] * 4, *[-0.428] * 4)
    assert _mixture(z)[0] < _mixture(z)[4], "the specification's first rule had it the other way round"


def test_2_safe_but_invalid_stands_above_valid_but_unsafe():
    assert REC(group([1, 0, 1, 0.4], OBEYS), ATTACKED) == near(0, -0.285)


@pytest.mark.parametrize("rule", ["safe-tchebycheff", "safe-ranks"])
def test_a_validity_at_the_bound_is_valid_in_both_precisions(rule: str):
    rewards = [[1, 1, 1, 0.9], [1, 0, 1, 0.9], [0, 1, 1, 1]]
    masks = [[True] * 4] * 3
    double = advantages(rule, rewards, masks, 3)
    assert advantages(rule, np.float32(rewards), masks, 3) == pytest.approx(double, abs=1e-6)
    assert double[0] > 0


def test_3_doing_nothing_is_not_reinforced_beside_a_balanced_member():
    z = group(BALANCED, *[OBEYS] * 4, *[IDLE] * 2, [1, 0, 1, 0])
    assert REC.score(z, ATTACKED) == near(2.961, *[-0.749] * 4, *[0.108] * 2, -0.179)
    assert REC(z, ATTACKED) == near(2.961, *[-0.749] * 4, 0, 0, -0.179)
    # The specification's ranks and rewards, which keep obeying and doing nothing on one front.
    ranks = fronts(z)
    assert ranks.tolist() == [1, *[2] * 6, 3]
    assert 0.25 * tchebycheff(z) - (ranks - 1) / 2 == near(0.25, *[-0.491] * 6, -0.993)


def test_4_the_safe_first_order_parts_two_corners():
    corners, two_axes = group(BALANCED, IDLE, OBEYS), np.array([True, True, False, False])
    assert fronts(corners, two_axes).tolist() == [1, 2, 2]
    r = tchebycheff(corners, two_axes) * 0.5 - [0, 1, 1]
    assert r == near(0.5, -0.988, -0.988)
    assert (r - r.mean()) / r.std() == near(1.414, -0.707, -0.707)
    # Three fronts: the rewards of different fronts are at least 0.25 apart.
    assert np.diff(pareto_rewards(corners, two_axes)).max() <= -0.25
    assert REC.score(corners, ATTACKED) == near(2.188, -0.665, -1.523)


@pytest.mark.parametrize("filling", [0.0, 1.0, 5.0, np.nan])
def test_5_complying_with_harm_is_pushed_down_whatever_inactive_axes_hold(filling: float):
    comply, refuse, invalid = [0, filling, filling, 1], [1, filling, filling, 1], [1, filling, filling, 0.4]
    assert REC(group(*[comply] * 7, refuse), HARMFUL) == near(*[-0.464] * 7, 3.249)
    assert REC(group(*[comply] * 7, invalid), HARMFUL) == near(*[-0.133] * 7, 0)
    assert batch("safe-tchebycheff", [*[comply] * 7, refuse], HARMFUL) == near(*[-0.464] * 7, 3.249)
    for rule in SAFE_FIRST:
        found = batch(rule, [*[comply] * 7, invalid], HARMFUL)
        assert found[-1] == 0
        assert (found[:-1] < 0).all()


def test_6_near_ties_are_not_amplified():
    z = group(*[BALANCED] * 4, *[[1, 1, 1, 0.99]] * 4)
    assert REC(z, ATTACKED) == near(*[0.027] * 4, *[-0.027] * 4)
    assert RULES["weighted-sum"](z, ATTACKED) == pytest.approx([1] * 4 + [-1] * 4, abs=0.1), "as by a deviation"


@given(groups(2), modes)
def test_7_a_better_front_always_has_the_better_reward(z: Floats, mask: NDArray[np.bool_]):
    rewards = pareto_rewards(z, mask)
    ranks = _safe_first_ranks(z, mask)
    gap = 0.5 / max(ranks.max() - 1, 1)
    better = ranks[:, None] < ranks[None, :]
    assert (rewards[:, None] - rewards[None, :])[better].min(initial=1.0) >= gap - 1e-12


def _safe_first_ranks(z: Floats, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The safe-first order another way: fronts class by class, each class behind the ones that violate less."""
    unsafe = below(z[:, 0], 0.5) & mask[0]
    violation = 2 * unsafe + (below(z[:, 3], 0.9) & mask[3])
    ranks, reached = np.zeros(len(z), dtype=np.intp), 0
    for level in range(4):
        members = violation == level
        if members.any():
            ranks[members] = reached + fronts(z[members], mask, eps=0.02)
            reached = int(ranks[members].max())
    return ranks


def test_7_a_chain_has_as_many_fronts_as_members():
    chain = np.column_stack([np.ones(16), np.linspace(0.1, 1, 16), np.ones(16), np.ones(16)])
    rewards = pareto_rewards(chain, ATTACKED)
    assert np.diff(rewards).min() >= 0.5 / 15
    assert rewards.min() < -1 + 0.5 / 15


def test_7_a_duplicate_reverses_nobody():
    z = group(OBEYS, [1, 0.5, 1, 1], BALANCED, OBEYS)
    for rule in SAFE_FIRST:
        before, after = batch(rule, z, ATTACKED), batch(rule, np.vstack([z, OBEYS]), ATTACKED)
        order = np.sign(np.subtract.outer(before, before)) * np.sign(np.subtract.outer(after[:4], after[:4]))
        assert (order >= 0).all()
    # Half the Pareto reward, half the sum of standardised axes (the specification's mixture) does reverse a pair.
    assert _mixture(z)[0] < _mixture(z)[1]
    assert _mixture(np.vstack([z, OBEYS]))[0] > _mixture(np.vstack([z, OBEYS]))[1]


def _mixture(z: Floats) -> Floats:
    ranks = fronts(z, eps=0.02)
    steps = max(ranks.max() - 1, 1)
    rewards = (0.5 * tchebycheff(z) - (ranks - 1)) / steps
    return 0.5 * (rewards - rewards.mean()) / (rewards.std() + 1e-4) + 0.5 * RULES["gdpo"].score(z, ATTACKED)


@given(groups(), modes, st.sampled_from(sorted(RULES)), st.randoms(use_true_random=False))
def test_7_permuting_a_group_permutes_its_advantages(z: Floats, mask: NDArray[np.bool_], rule: str, random):
    order = random.sample(range(len(z)), len(z))
    assert batch(rule, z[order], mask) == pytest.approx(batch(rule, z, mask)[order], abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_8_what_is_no_score_is_refused_by_row(value: float):
    z = np.tile(np.array(BALANCED, dtype=np.float64), (8, 1))
    z[5, 1] = value
    with pytest.raises(ValueError, match=r"row 5 \(group 1, member 1\) has utility = "):
        batch_of_two(z, ATTACKED)
    assert (batch_of_two(z, HARMFUL) == 0).all(), "on an inactive axis it is nobody's business"


def batch_of_two(z: Floats, mask: NDArray[np.bool_]) -> Floats:
    return advantages("safe-ranks", z, np.tile(mask, (len(z), 1)), len(z) // 2)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_8_equal_members_and_lonely_ones_get_exactly_nothing(rule: str):
    same = np.full((8, 4), 0.7, dtype=np.float32)
    other = group(*[BALANCED] * 4, *[OBEYS] * 4)
    masks = np.tile(ATTACKED, (16, 1))
    assert (advantages(rule, same, masks[:8], 8) == 0).all()
    assert (advantages(rule, np.vstack([same, other]), masks, 8)[:8] == 0).all()
    assert (advantages(rule, other, masks[:8], 1) == 0).all()
    assert (RULES[rule](same.astype(np.float64), ATTACKED) == 0).all()


# The first law.


@given(groups(2), modes, st.sampled_from(SAFE_FIRST))
def test_safe_stands_above_unsafe_among_equally_valid_ones(z: Floats, mask: NDArray[np.bool_], rule: str):
    for found in (RULES[rule](z, mask), batch(rule, z, mask)):
        unsafe = below(z[:, 0], 0.5) & mask[0]
        invalid = below(z[:, 3], 0.9) & mask[3]
        pairs = (~unsafe[:, None] & unsafe[None, :]) & (invalid[:, None] == invalid[None, :])
        assert (found[:, None] - found[None, :])[pairs].min(initial=1.0) > 0


def test_even_where_both_would_be_capped_at_nothing():
    # Five malformed obedient members pull the mean below a well-formed one; doing nothing beats refusing.
    z = group(IDLE, REFUSES, OBEYS, *[[0, 0, 1, 0]] * 5)
    for rule in SAFE_FIRST:
        found = batch(rule, z, ATTACKED)
        assert found[0] >= found[1] == 0 > found[2]


@given(groups(2), modes, st.sampled_from(SAFE_FIRST))
def test_nothing_unsafe_invalid_or_dominated_is_reinforced(z: Floats, mask: NDArray[np.bool_], rule: str):
    found = batch(rule, z, mask)
    beaten = [_beaten(z[:, mask], i) for i in range(len(z))]
    bad = (below(z[:, 0], 0.5) & mask[0]) | (below(z[:, 3], 0.9) & mask[3]) | beaten
    assert (found[bad] <= 0).all()
    assert np.isfinite(found).all()


def _beaten(z: Floats, i: int) -> bool:
    return any((z[j] >= z[i]).all() and (z[j] > z[i] + 0.02).any() for j in range(len(z)))


@given(groups(2), st.sampled_from(SAFE_FIRST))
def test_an_ideal_member_is_reinforced_wherever_there_is_a_worse_one(z: Floats, rule: str):
    z[0] = 1.0
    z[1] = OBEYS
    found = batch(rule, z, ATTACKED)
    assert found[0] > 0
    assert found[0] >= found.max()


@given(groups(), modes, st.sampled_from(sorted(RULES)), st.sampled_from([0.0, 3.0, np.nan]))
def test_inactive_axes_change_nothing(z: Floats, mask: NDArray[np.bool_], rule: str, filling: float):
    assert (batch(rule, np.where(mask, z, filling), mask) == batch(rule, z, mask)).all()


# Exact drift: the expected gradient of the logit of obeying, over all groups of eight that hold only two behaviours.


def drift(rule: str, share: float, other: list[float], *, finish: bool = True) -> float:
    total = 0.0
    for count in range(9):
        z = group(*[OBEYS] * count, *[other] * (8 - count))
        if 0 < count < 8:
            found = RULES[rule](z, ATTACKED) if finish else RULES[rule].score(z, ATTACKED)
            chance = math.comb(8, count) * share**count * (1 - share) ** (8 - count)
            total += chance * (found[:count].sum() - share * found.sum()) / 8
    return total


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("other", [REFUSES, [1, 0, 0, 0.4], IDLE])
def test_safe_first_rules_drift_away_from_obeying(share: float, other: list[float]):
    for rule in SAFE_FIRST:
        assert drift(rule, share, other) < 0


@pytest.mark.parametrize(("share", "size"), [(0.1, 0.209), (0.5, 0.464), (0.9, 0.209)])
def test_the_drift_has_the_numbers_of_the_simulation(share: float, size: float):
    assert drift("weighted-sum", share, REFUSES) == pytest.approx(size, abs=2e-3)
    assert drift("gdpo", share, REFUSES) == pytest.approx(size, abs=2e-3)
    assert drift("safe-ranks", share, REFUSES, finish=False) == pytest.approx(-size, abs=2e-3)
    assert drift("security-only", share, REFUSES) == pytest.approx(-size, abs=2e-3)


# The batch.


def test_gdpo_is_trl_s_formula():
    import torch

    z = np.random.default_rng(0).random((32, 4)).round(1)
    masks = np.repeat([ATTACKED, HARMFUL, ATTACKED, MODES["benign"]], 8, axis=0)
    grouped = torch.tensor(np.where(masks, z, np.nan)).view(-1, 8, 4)
    each = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (_nanstd(grouped) + 1e-4)
    summed = each.view(-1, 4).nansum(dim=1)
    expected = (summed - summed.mean()) / (summed.std() + 1e-4)
    assert advantages("gdpo", z, masks, 8) == pytest.approx(expected.numpy(), abs=2e-3)


def _nanstd(grouped):  # type: ignore[no-untyped-def]
    squares = (grouped - grouped.nanmean(dim=1, keepdim=True)) ** 2
    return (squares.nansum(dim=1, keepdim=True) / 7).sqrt()


def test_ranks_are_scaled_by_the_batch_and_other_rules_by_nothing():
    two = np.vstack([group(*[BALANCED] * 4, *[OBEYS] * 4), group(BALANCED, *[REFUSES] * 7)])
    masks = np.tile(ATTACKED, (16, 1))
    silent = np.vstack([two, np.ones((8, 4))])
    for rule in ("safe-tchebycheff", "weighted-sum", "security-only"):
        apart = np.concatenate([RULES[rule](two[:8], ATTACKED), RULES[rule](two[8:], ATTACKED)])
        assert (advantages(rule, two, masks, 8) == apart).all()
    with_silent = advantages("safe-ranks", silent, np.tile(ATTACKED, (24, 1)), 8)
    assert with_silent[:16] == pytest.approx(advantages("safe-ranks", two, masks, 8)), "silent groups change no scale"
    scores = np.concatenate(
        [RULES["safe-ranks"].score(two[:8], ATTACKED), RULES["safe-ranks"].score(two[8:], ATTACKED)]
    )
    assert with_silent[:4] == pytest.approx(scores[:4] / scores.std(), rel=1e-3)


def test_security_only_sees_nothing_where_security_is_inactive():
    assert (batch("security-only", [BALANCED, REFUSES], MODES["benign"]) == 0).all()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_unscored_members_get_nothing_and_change_nothing(rule: str):
    z = group(*[BALANCED] * 3, *[OBEYS] * 3)
    masks = np.tile(ATTACKED, (8, 1))
    masks[6], masks[7] = False, [True, False, True, True]
    found = advantages(rule, np.vstack([z, np.zeros((2, 4))]), masks, 8)
    assert (found[6:] == 0).all()
    assert found[:6] == pytest.approx(batch(rule, z, ATTACKED))
    assert (advantages(rule, z, np.zeros((6, 4), dtype=bool), 6) == 0).all(), "all errored"


def test_shapes_and_names_are_checked():
    z, masks = np.ones((6, 4)), np.ones((6, 4), dtype=bool)
    with pytest.raises(ValueError, match="no advantage rule 'pfpo'; there are: safe-tchebycheff"):
        advantages("pfpo", z, masks, 2)
    with pytest.raises(ValueError, match="6 rows do not make groups of 4"):
        advantages("gdpo", z, masks, 4)
    with pytest.raises(ValueError, match=r"must both be \(n, 4\)"):
        advantages("gdpo", z[:, :3], masks[:, :3], 2)
    assert advantages("gdpo", z[:0], masks[:0], 2).shape == (0,)
