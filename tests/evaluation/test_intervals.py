"""Intervals against scipy, simulation and a plain bootstrap; pass^k against brute force."""

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from fate_gym.evaluation.intervals import Estimate, clustered_bootstrap, pass_hat_k, rate, wilson


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def width(estimate: Estimate) -> float:
    low, high = bounds(estimate)
    return high - low


def covers(estimate: Estimate, truth: float) -> bool:
    low, high = bounds(estimate)
    return low <= truth <= high


@pytest.mark.parametrize("n", [1, 2, 7, 97, 949])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_wilson_equals_scipy(n: int, confidence: float) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        ours = wilson(successes, n, confidence)
        theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert (ours.value, ours.n, ours.method) == (successes / n, n, "wilson")
        assert ours.low == pytest.approx(theirs.low, abs=1e-12)
        assert ours.high == pytest.approx(theirs.high, abs=1e-12)


def test_wilson_touches_its_ends_exactly() -> None:
    assert wilson(0, 13).low == 0.0
    assert wilson(13, 13).high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (math.nan, 5), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_level_outside_0_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)
    with pytest.raises(ValueError, match="confidence"):
        clustered_bootstrap([0, 1], ["a", "b"], confidence=confidence)


def test_nothing_has_no_rate() -> None:
    assert rate([], []) == Estimate(None, None, None, 0, "wilson")
    assert clustered_bootstrap([], []) == Estimate(None, None, None, 0, "clustered bootstrap")


def test_independent_outcomes_get_wilson() -> None:
    assert rate([True, False, False], ["a", "b", "c"]) == wilson(1, 3)


def test_a_clean_sheet_still_has_an_upper_bound_from_its_tasks() -> None:
    clusters = [f"task{i % 97}" for i in range(949)]
    clean = rate(np.zeros(949), clusters)
    assert (clean.value, clean.low, clean.n, clean.method) == (0.0, 0.0, 949, "wilson over clusters")
    assert clean.high == wilson(0, 97).high
    full = rate(np.ones(949), clusters)
    assert (full.value, full.low, full.high) == (1.0, wilson(97, 97).low, 1.0)


def test_one_task_is_one_trial() -> None:
    estimate = rate([0, 1, 1, 1], ["a"] * 4)
    assert (estimate.value, estimate.n, estimate.method) == (0.75, 4, "wilson over clusters")
    assert (estimate.low, estimate.high) == (wilson(0.75, 1).low, wilson(0.75, 1).high)


def test_clusters_that_differ_in_size_only_do_not_feign_certainty() -> None:
    estimate = rate([0, 1, 0, 1, 0, 1], ["a", "a", "b", "b", "b", "b"])
    assert estimate.method == "wilson over clusters"
    assert (estimate.low, estimate.high) == (wilson(1, 2).low, wilson(1, 2).high)


def test_equal_fractions_are_not_bootstrapped_despite_rounding() -> None:
    estimate = rate([0.1] * 10, ["a"] * 3 + ["b"] * 7)
    assert estimate.method == "wilson over clusters"
    assert estimate.value == pytest.approx(0.1)
    assert rate([1.0] * 3 + [1.0 - 1e-16], list("abcd")).high == 1.0


def test_rounding_does_not_leave_the_range_of_the_values() -> None:
    estimate = clustered_bootstrap([0.1] * 13, [str(i) for i in range(13)])
    assert (estimate.value, estimate.low, estimate.high) == (0.1, 0.1, 0.1)


def test_clustered_values_are_wider_than_independent_ones() -> None:
    values = [1] * 10 + [0] * 10 + [1] * 10 + [0] * 10
    clusters = [str(i // 10) for i in range(40)]
    clustered, naive = rate(values, clusters), wilson(20, 40)
    assert clustered.method == "clustered bootstrap"
    assert clustered.value == 0.5
    assert width(clustered) > 1.5 * width(naive)


def test_the_bootstrap_agrees_with_a_plain_one() -> None:
    random = np.random.default_rng(3)
    sizes = random.integers(1, 6, size=30)
    groups = [random.random(size) for size in sizes]
    means = []
    for _ in range(4000):
        drawn = [groups[i] for i in random.integers(30, size=30)]
        means.append(np.concatenate(drawn).mean())
    ours = clustered_bootstrap(np.concatenate(groups), np.repeat(np.arange(30), sizes).astype(str).tolist())
    assert ours.value == pytest.approx(np.concatenate(groups).mean())
    assert [ours.low, ours.high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.01)


def test_coverage_is_near_nominal() -> None:
    # Task difficulties from Beta(2, 3), whose mean is 0.4; five episodes a task.
    random = np.random.default_rng(0)
    clusters = [f"t{i}" for i in range(60) for _ in range(5)]
    clustered = naive = 0
    for _ in range(300):
        values = random.random((60, 5)) < random.beta(2, 3, size=(60, 1))
        estimate, independent = rate(values.ravel(), clusters), wilson(int(values.sum()), 300)
        assert estimate.method == "clustered bootstrap"
        clustered += covers(estimate, 0.4)
        naive += covers(independent, 0.4)
    assert 0.91 <= clustered / 300 <= 0.98
    assert naive / 300 < 0.90, "the data do not need clustering, so that this test proves nothing"


@given(st.data())
def test_order_does_not_matter(data: st.DataObject) -> None:
    rows = st.tuples(st.floats(0, 1), st.sampled_from(["a", "b", "c", "c\0"]))
    pairs = data.draw(st.lists(rows, max_size=20))
    shuffled = data.draw(st.permutations(pairs))
    first, second = (rate([value for value, _ in p], [name for _, name in p]) for p in (pairs, shuffled))
    assert first == second
    if first.value is not None:
        low, high = bounds(first)
        assert 0 <= low <= high <= 1


def test_same_seed_same_interval() -> None:
    values, clusters = [0, 1, 1, 0, 1], ["a", "a", "b", "c", "c"]
    assert rate(values, clusters) == rate(values, clusters)
    one, two = (clustered_bootstrap(np.arange(50), [str(i) for i in range(50)], seed=seed) for seed in (1, 2))
    assert one.value == two.value
    assert one.low != two.low


@pytest.mark.parametrize("values", [[0.0, math.nan], [0.0, math.inf], [0.0, 1.5], [-0.1, 1.0]])
def test_values_that_are_no_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        rate(values, ["a", "b"])


@pytest.mark.parametrize("values", [[0.0], [0.0, 1.0, 1.0], [[0.0, 1.0]]])
def test_each_value_needs_a_cluster(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one cluster a value"):
        rate(values, ["a", "b"])


def test_a_hundred_thousand_values_take_less_than_two_seconds() -> None:
    values = np.random.default_rng(0).integers(0, 2, size=100_000)
    clusters = [f"task-{i % 10_000}" for i in range(100_000)]
    start = time.process_time()
    rate(values, clusters)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_hat_k_equals_brute_force(k: int) -> None:
    counts = [(c, n) for n in range(6) for c in range(n + 1)]
    tasks = [list(combinations([1] * c + [0] * (n - c), k)) for c, n in counts if n >= k]
    chances = [sum(all(draw) for draw in draws) / len(draws) for draws in tasks]
    assert pass_hat_k(counts, k) == pytest.approx(sum(chances) / len(chances))


def test_pass_hat_k_without_enough_repeats_is_unknown() -> None:
    assert pass_hat_k([], 1) is None
    assert pass_hat_k([(2, 2)], 3) is None
    assert pass_hat_k([(0, 2), (3, 3)], 3) == 1.0


@pytest.mark.parametrize(("counts", "k"), [([(1, 2)], 0), ([(3, 2)], 1), ([(-1, 2)], 1)])
def test_pass_hat_k_refuses_impossible_counts(counts: list[tuple[int, int]], k: int) -> None:
    with pytest.raises(ValueError, match="k must be"):
        pass_hat_k(counts, k)
