"""Paired comparison agrees with scipy and statsmodels, and behaves at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference

from fate_gym.leaderboards.statistics import difference, mcnemar, paired_proportions

COUNTS = st.integers(0, 3000)


@given(COUNTS, COUNTS)
def test_mcnemar_is_that_of_statsmodels(only_a: int, only_b: int) -> None:
    expected = reference([[7, only_a], [only_b, 5]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, expected), rel=1e-9)


def test_mcnemar_of_large_counts() -> None:
    expected = stats.binomtest(49_500, 100_000, 0.5).pvalue
    assert mcnemar(49_500, 50_500) == pytest.approx(expected, rel=1e-7)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 0)


@pytest.mark.parametrize(
    ("table", "expected"),
    # Newcombe (1998), table III, method 10: (both, only a, only b, neither), bounds of a - b.
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((0, 12, 2, 36), (0.0569, 0.3404)),
        ((53, 0, 0, 0), (-0.0676, 0.0676)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        ((0, 0, 30, 0), (-1.0, -0.8395)),
    ],
)
def test_paired_proportions_are_newcombes(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    low, high = paired_proportions(*table)
    assert (-high, -low) == pytest.approx(expected, abs=2e-4)


def test_paired_proportions_need_a_pair() -> None:
    with pytest.raises(ValueError, match="no pair"):
        paired_proportions(0, 0, 0, 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_single_binary_pairs_get_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = difference(a, b, [f"t{i}" for i in range(len(pairs))])
    table = [[int((x * y).sum()) for y in (b, 1 - b)] for x in (a, 1 - a)]
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(min(1.0, reference(table, exact=True).pvalue), rel=1e-9)
    assert found.value == pytest.approx(b.mean() - a.mean())
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.high > found.low


def clustered(
    seed: int, tasks: int = 40, each: int = 6, shift: float = 0.15
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Binary outcomes of two systems; tasks differ in difficulty, which both share."""
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.beta(1, 1, tasks), each)
    a = rng.random(tasks * each) < hard
    b = rng.random(tasks * each) < np.clip(hard + shift, 0, 1)
    return a.astype(float), b.astype(float), [f"t{i // each}" for i in range(tasks * each)]


@pytest.mark.parametrize("seed", range(4))
def test_the_clustered_bootstrap_is_that_of_scipy(seed: int) -> None:
    a, b, clusters = clustered(seed)
    found = difference(a, b, clusters, resamples=8000)
    sums = (b - a).reshape(-1, 6).sum(axis=1) / 6
    expected = stats.bootstrap(
        (sums,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.test == "clustered bootstrap"
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.012)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_the_p_value_is_that_of_scipys_permutation_test(shift: float) -> None:
    a, b, clusters = clustered(3, shift=shift)
    found = difference(a, b, clusters, resamples=8000)
    sums = [x.reshape(-1, 6).mean(axis=1) for x in (a, b)]
    expected = stats.permutation_test(
        sums, lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=8000, rng=np.random.default_rng(1)
    ).pvalue
    assert found.p == pytest.approx(expected, abs=0.025)


def test_a_p_value_is_never_nothing() -> None:
    clusters = [f"t{i // 2}" for i in range(80)]
    assert difference([0] * 80, [1] * 80, clusters, resamples=50).p == pytest.approx(1 / 51)


def test_unequal_clusters_weigh_by_their_episodes() -> None:
    found = difference([0, 0, 0, 1], [1, 1, 1, 1], ["x", "x", "x", "y"])
    assert (found.a, found.b, found.value, found.n, found.clusters) == (0.25, 1.0, 0.75, 4, 2)


@given(st.permutations(range(24)))
def test_the_order_of_the_pairs_does_not_matter(order: list[int]) -> None:
    a, b, clusters = clustered(1, tasks=6, each=4)
    shuffled = difference(a[order], b[order], [clusters[i] for i in order], resamples=50)
    assert shuffled == difference(a, b, clusters, resamples=50)


def test_equal_systems_differ_by_nothing_and_the_interval_says_how_sure_that_is() -> None:
    a, _, clusters = clustered(0)
    found = difference(a, a, clusters)
    assert (found.value, found.p) == (0.0, 1.0)
    assert found.low is not None
    assert found.high is not None
    assert -0.4 < found.low < -0.05
    assert 0.05 < found.high < 0.4


def test_one_task_never_claims_certainty() -> None:
    found = difference([0, 0, 0, 0], [1, 1, 1, 0.5], ["t"] * 4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2
    assert found.p == pytest.approx(1.0, abs=0.01)


def test_values_that_do_not_apply_are_left_out() -> None:
    nan = math.nan
    found = difference([1, nan, 0, nan], [1, 1, nan, nan], ["a", "b", "c", "d"])
    assert (found.a, found.b, found.n, found.clusters) == (0.5, 1.0, 3, 3)
    assert found.test == "clustered bootstrap"


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_nothing_to_compare(values: list[float]) -> None:
    found = difference(values, values, ["t"] * len(values))
    assert (found.value, found.p, found.n, found.test) == (None, None, 0, "none")


def test_one_side_without_values() -> None:
    found = difference([1, 1], [math.nan, math.nan], ["s", "t"])
    assert (found.a, found.b, found.value, found.test) == (1.0, None, None, "none")


def test_a_curve_is_applied_to_the_means() -> None:
    a, b, clusters = clustered(2)
    found = difference(a, b, clusters, curve=lambda x: 2 * x / (1 + x))
    assert found.value == pytest.approx(2 * b.mean() / (1 + b.mean()) - 2 * a.mean() / (1 + a.mean()))
    plain = difference(a, b, clusters)
    assert found.low != plain.low
    assert difference(a, a, clusters, curve=np.sqrt).value == 0.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pairs need values of both"):
        difference([1], [1, 0], ["t"])
    with pytest.raises(ValueError, match="finite"):
        difference([math.inf], [1], ["t"])


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_the_same_seed_gives_the_same_numbers(seed: int) -> None:
    a, b, clusters = clustered(seed, tasks=8, each=3)
    assert difference(a, b, clusters, resamples=100, seed=seed) == difference(a, b, clusters, resamples=100, seed=seed)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = rejected = 0
    for seed in range(400):
        a, b, clusters = clustered(seed, shift=0.0)
        found = difference(a, b, clusters, resamples=500)
        assert found.low is not None
        assert found.high is not None
        assert found.p is not None
        held += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert 0.90 <= held / 400 <= 0.985
    assert rejected / 400 <= 0.08


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("tasks", [97, 100_000])
def test_a_bootstrap_over_a_hundred_thousand_episodes_takes_seconds(tasks: int) -> None:
    a, b = np.random.default_rng(0).random((2, 100_000))
    found = difference(a, b, [f"t{i % tasks}" for i in range(100_000)])
    assert (found.n, found.clusters, found.test) == (100_000, tasks, "clustered bootstrap")
    assert found.low is not None
    assert found.low < found.value < found.high
