"""Dominance, fronts, the choice of a repair, hypervolume: properties, and agreement with pymoo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fate_gym.pareto import choose, dominance, dominates, fronts, hypervolume, peel, tchebycheff

Points = NDArray[np.float64]
LEVELS = st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.25, 0.5, 0.99, 1.0])


def points(most: int = 16, axes: int = 4) -> st.SearchStrategy[Points]:
    shape = st.tuples(st.integers(1, most), st.just(axes))
    return hnp.arrays(np.float64, shape, elements=LEVELS | st.floats(0, 1))


masks = hnp.arrays(np.bool_, 4)
tolerances = st.sampled_from([0.0, 0.02, 0.3])


def test_dominance_is_better_somewhere_and_nowhere_worse():
    assert dominates([1, 1], [1, 0])
    assert not dominates([1, 0], [0, 1])
    assert not dominates([1, 1], [1, 1])


def test_the_tolerance_is_one_sided():
    assert not dominates([1, 1], [1, 0.99], eps=0.02)
    assert dominates([1, 1], [1, 0.97], eps=0.02)
    assert not dominates([1, 0.99], [0, 1], eps=0.02), "a little worse is worse"


@given(points(3), tolerances)
def test_dominance_is_transitive_and_has_no_cycle(z: Points, eps: float):
    beats = dominance(z, eps=eps)
    assert not (beats & beats.T).any()
    two_steps = beats.astype(int) @ beats.astype(int) > 0
    assert not (two_steps & ~beats).any()


@given(points(), masks, tolerances)
def test_fronts_hold_each_other_in_order(z: Points, mask: NDArray[np.bool_], eps: float):
    ranks, beats = fronts(z, mask, eps), dominance(z, mask, eps)
    assert set(ranks) == set(range(1, ranks.max() + 1))
    assert ranks.max() <= len(z)
    for i, rank in enumerate(ranks):
        above = ranks[beats[:, i]]
        assert (above < rank).all()
        assert rank == 1 or above.max() == rank - 1, "each point is beaten from the front just above"


@given(points(), masks, st.randoms(use_true_random=False))
def test_permuting_the_points_permutes_the_results(z: Points, mask: NDArray[np.bool_], random):
    order = random.sample(range(len(z)), len(z))
    assert (fronts(z[order], mask) == fronts(z, mask)[order]).all()
    if mask.any():
        assert (tchebycheff(z[order], mask) == tchebycheff(z, mask)[order]).all()


@given(points(), masks, st.sampled_from([0.0, 1.0, 7.0, np.nan, np.inf]))
def test_inactive_axes_change_nothing(z: Points, mask: NDArray[np.bool_], filling: float):
    mask[0] = True
    filled = np.where(mask, z, filling)
    assert (fronts(filled, mask) == fronts(z, mask)).all()
    assert (tchebycheff(filled, mask) == tchebycheff(z, mask)).all()
    assert choose(filled, mask) == choose(z, mask)
    assert dominates(filled[0], filled[-1], mask) == dominates(z[0], z[-1], mask)


@given(points(), st.data())
def test_duplicates_share_a_front_and_move_nobody(z: Points, data: st.DataObject):
    copied = data.draw(st.integers(0, len(z) - 1))
    ranks = fronts(np.vstack([z, z[copied]]))
    assert (ranks[:-1] == fronts(z)).all()
    assert ranks[-1] == ranks[copied]


@given(points(40), tolerances)
def test_tchebycheff_lies_in_the_unit_interval_and_follows_dominance(z: Points, eps: float):
    values = tchebycheff(z)
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    beats = dominance(z, eps=eps)
    # Among four axes an improvement of eps is one of eps / 4 in the mean, less what rounding takes.
    assert (values[:, None] - values[None, :])[beats].min(initial=1.0) > 0.05 / 1.05 * eps / 4 - 1e-12


def test_tchebycheff_prefers_the_balanced_point():
    corner, balanced = tchebycheff([[1, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]])
    assert corner == pytest.approx(0.05 * 0.75 / 1.05)
    assert balanced == pytest.approx(0.5)


def test_the_choice_is_on_the_front_then_balanced_then_short_then_first():
    assert choose([[1, 0], [0.6, 0.6], [0.5, 0.5]]) == 1
    assert choose([[1, 1], [1, 1], [1, 1]], tie=[30, 10, 10]) == 1
    assert choose([[1, 1], [1, 1]]) == 0
    assert choose([[0, 1], [1, 0]], mask=[True, False]) == 1


@given(points())
def test_the_choice_is_never_dominated(z: Points):
    assert not dominance(z)[:, choose(z)].any()


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_fronts_agree_with_pymoo(axes: int):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    rng = np.random.default_rng(axes)
    for n in (1, 7, 100, 1000):
        for z in (rng.random((n, axes)), rng.integers(0, 3, (n, axes)) / 2):
            _, ranks = NonDominatedSorting().do(-z, return_rank=True)
            assert (fronts(z) == np.asarray(ranks) + 1).all()


@pytest.mark.parametrize(("axes", "most"), [(1, 50), (2, 300), (3, 100), (4, 30)])
def test_hypervolume_agrees_with_pymoo(axes: int, most: int):
    from pymoo.indicators.hv import HV

    rng = np.random.default_rng(axes)
    for n in (1, 5, most):
        for z in (rng.random((n, axes)), rng.integers(0, 4, (n, axes)) / 3):
            for reference in (0.0, 0.2, -0.5):
                corner = np.full(axes, reference)
                expected = HV(ref_point=-corner)(-z)
                assert hypervolume(z, corner) == pytest.approx(expected, abs=1e-9)


def test_hypervolume_of_known_sets():
    assert hypervolume([[0.9, 0.8, 0.5]]) == pytest.approx(0.36)
    assert hypervolume([[1, 0.5], [0.5, 1]]) == pytest.approx(0.75)
    assert hypervolume(np.zeros((0, 3))) == 0.0
    assert hypervolume([[0.4, 0.4], [0.6, 0.6]], reference=[0.5, 0.5]) == pytest.approx(0.01)


@given(points(8, axes=3))
def test_hypervolume_ignores_dominated_points_and_never_falls(z: Points):
    whole = hypervolume(z)
    assert hypervolume(z[fronts(z) == 1]) == pytest.approx(whole)
    assert hypervolume(z[:-1]) <= whole + 1e-12
    assert hypervolume(np.vstack([z, z])) == pytest.approx(whole)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="point 1 is not finite"):
        fronts([[1, 0], [np.nan, 1]])
    with pytest.raises(ValueError, match="points must be"):
        fronts([1, 2])
    with pytest.raises(ValueError, match=r"2 axes, mask \(3,\)"):
        fronts([[1, 0]], mask=[True, True, False])
    with pytest.raises(ValueError, match=r"2 axes, mask \(1,\)"):
        fronts([[1, 0]], mask=[True])
    with pytest.raises(ValueError, match="not be negative"):
        dominates([1], [0], eps=-0.1)
    with pytest.raises(ValueError, match="no axis is active"):
        tchebycheff([[1, 0]], mask=[False, False])
    with pytest.raises(ValueError, match="no point"):
        choose(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="one tie value a point"):
        choose([[1, 1]], tie=[1, 2])
    with pytest.raises(ValueError, match="one tie value a point"):
        choose([[1, 1], [1, 1]], tie=[1])
    with pytest.raises(ValueError, match="the reference must be 2"):
        hypervolume([[1, 1]], reference=[0])
    with pytest.raises(ValueError, match="in a circle"):
        peel(np.array([[False, True], [True, False]]))
