"""Intervals against scipy and simulation; pass^k against brute force."""

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from fate_gym.evaluation.intervals import Estimate, pass_hat_k, rate, wilson


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


def test_nothing_has_no_rate() -> None:
    assert rate([], []) == Estimate(None, None, None, 0, "wilson")


def test_independent_outcomes_get_wilson() -> None:
    assert rate([True, False, False], ["a", "b", "c"]) == wilson(1, 3)


def test_a_clean_sheet_still_has_an_upper_bound_from_its_tasks() -> None:
    clusters = [f"task{i % 97}" for i in range(970)]
    clean = rate(np.zeros(970), clusters)
    assert (clean.value, clean.low, clean.n, clean.method) == (0.0, 0.0, 970, "clustered wilson")
    assert clean.high == pytest.approx(wilson(0, 97).high)
    full = rate(np.ones(970), clusters)
    assert (full.value, full.high) == (1.0, 1.0)
    assert full.low == pytest.approx(wilson(97, 97).low)


def test_a_few_successes_say_little_of_how_tasks_differ() -> None:
    clusters = [f"task{i % 97}" for i in range(970)]
    highs = [bounds(rate([1.0] * hits + [0.0] * (970 - hits), clusters))[1] for hits in range(4)]
    assert highs[0] > highs[1] > 3 * bounds(wilson(1, 970))[1]
    assert highs[3] > 2 * bounds(wilson(3, 970))[1]


def test_one_task_is_one_trial() -> None:
    estimate = rate([0, 1, 1, 1], ["a"] * 4)
    assert (estimate.value, estimate.n, estimate.method) == (0.75, 4, "clustered wilson")
    assert bounds(estimate) == pytest.approx(bounds(wilson(0.75, 1)))


def test_clusters_that_do_not_differ_do_not_feign_certainty() -> None:
    pair = rate([0, 1, 0, 1, 0, 1], ["a", "a", "b", "b", "b", "b"])
    assert width(pair) > width(wilson(3, 6))
    graded = rate([0.9] * 40, [str(i // 4) for i in range(40)])
    assert 0.02 < width(graded) < width(wilson(9, 10))
    assert rate([1.0] * 3 + [1.0 - 1e-16], list("abcd")).high == 1.0


def test_a_cluster_of_copies_is_one_trial() -> None:
    values, clusters = [1] * 10 + [0] * 10 + [1] * 10 + [0] * 10, [str(i // 10) for i in range(40)]
    clustered = rate(values, clusters)
    assert clustered.method == "clustered wilson"
    assert bounds(clustered) == pytest.approx(bounds(wilson(2, 4)))
    assert width(clustered) > 1.5 * width(wilson(20, 40))


def test_values_with_a_cluster_each_are_worth_their_number() -> None:
    outcomes = [1.0] * 12 + [0.0] * 18
    almost = rate([*outcomes, 1e-15], [str(i) for i in range(31)])
    assert almost.method == "clustered wilson"
    assert bounds(almost) == pytest.approx(bounds(wilson(12, 31)), abs=1e-6)


def test_graded_values_that_vary_less_are_worth_more() -> None:
    clusters = [str(i // 4) for i in range(160)]
    random = np.random.default_rng(0)
    graded = rate(random.uniform(0.4, 0.6, size=160), clusters)
    assert width(graded) < 0.6 * width(rate(random.permutation([0.0, 1.0] * 80), clusters))


@pytest.mark.parametrize("truth", [0.03, 0.4, 0.9])
@pytest.mark.parametrize(("tasks", "episodes"), [(8, 4), (40, 10)])
def test_coverage_is_near_nominal(truth: float, tasks: int, episodes: int) -> None:
    # Tasks differ in difficulty: Beta with an intraclass correlation of 0.3.
    random = np.random.default_rng(0)
    clusters = [f"t{i}" for i in range(tasks) for _ in range(episodes)]
    clustered = naive = 0
    for _ in range(400):
        chances = random.beta(truth * 7 / 3, (1 - truth) * 7 / 3, size=(tasks, 1))
        values = random.random((tasks, episodes)) < chances
        clustered += covers(rate(values.ravel(), clusters), truth)
        naive += covers(wilson(int(values.sum()), values.size), truth)
    assert clustered / 400 >= 0.92
    assert naive < clustered - 0.02 * 400, "the data do not need clustering, so that this test proves nothing"


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
