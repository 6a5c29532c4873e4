"""Stage 3: the filter, the front, one repair a task, and a reason for everyone else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_episodes import make_episode, verdict_of

from fate_gym.episode import Episode, Trajectory
from fate_gym.pareto import dominates
from fate_gym.rewards import AXES
from fate_gym.trainers.config import ExampleSettings, SelectSettings
from fate_gym.trainers.episodes import vector
from fate_gym.trainers.stages.repair import Repair
from fate_gym.trainers.stages.select import CHOSEN, decide, decide_all, rejection
from fate_gym.trainers.stages.warm_up import from_repairs, from_successes, preferences

ALL = (True, True, True, True)
BENIGN = (False, True, True, True)
PARETO = SelectSettings()


def episode(values: tuple[float, ...], *, key: str = "f", mask: tuple[bool, ...] = ALL, length: int = 3) -> Episode:
    return make_episode(
        key,
        task_id=f"depot/{key.split('~')[0]}",
        mode="attacked" if mask[0] else "benign",
        attack="note" if mask[0] else None,
        verdict=verdict_of(values, mask),
        trajectory=Trajectory([1, 2], [*range(length)], [1] * length, [0.0] * length),
    )


OBEYED = episode((0.0, 1.0, 1.0, 1.0))
LOST = episode((0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("failure", "values", "reason"),
    [
        (LOST, (1.0, 1.0, 1.0, 1.0), None),
        (LOST, (1.0, 0.0, 1.0, 1.0), None),
        (LOST, (1.0, 1.0, 1.0, 0.9), "no better than the failure"),
        (OBEYED, (1.0, 0.0, 1.0, 1.0), "less useful than the failure"),
        (OBEYED, (1.0, 1.0, 0.0, 1.0), "refused"),
        (OBEYED, (0.5, 1.0, 1.0, 1.0), "unsafe"),
        (OBEYED, (1.0, 1.0, 1.0, 0.89), "validity below the least"),
        (OBEYED, (0.0, 0.0, 0.0, 0.0), "validity below the least"),
        (episode((1.0, 0.0, 1.0, 1.0)), (1.0, 0.0, 1.0, 1.0), "no better than the failure"),
    ],
)
def test_the_filter(failure: Episode, values: tuple[float, ...], reason: str | None) -> None:
    assert rejection(failure, episode(values), PARETO) == reason


def test_what_cannot_be_learned_or_compared_is_turned_away() -> None:
    perfect = episode((1.0,) * 4)
    assert rejection(LOST, dataclasses.replace(perfect, trajectory=None), PARETO) == "no token ids to learn from"
    assert rejection(LOST, episode((1.0,) * 4, mask=BENIGN), PARETO) == "judged on other axes than the failure"


def test_an_inactive_axis_says_nothing() -> None:
    failure = episode((1.0, 0.0, 1.0, 1.0), mask=BENIGN)
    assert rejection(failure, episode((0.0, 1.0, 1.0, 1.0), mask=BENIGN), PARETO) is None


def test_switches_take_the_over_refusal_axis_and_the_verification_away() -> None:
    refused, unsafe = episode((1.0, 1.0, 0.0, 1.0)), episode((0.0, 0.0, 0.0, 0.0))
    assert rejection(LOST, refused, dataclasses.replace(PARETO, over_refusal=False)) is None
    assert rejection(LOST, unsafe, dataclasses.replace(PARETO, rescore=False)) is None


def test_the_front_then_the_balance_then_the_shorter_one() -> None:
    candidates = [
        episode((1.0, 0.5, 1.0, 1.0)),
        episode((1.0, 1.0, 1.0, 0.95), length=9),
        episode((1.0, 1.0, 1.0, 0.95), length=5),
        episode((0.0, 1.0, 1.0, 1.0)),
    ]
    lost = episode((0.0, 0.0, 1.0, 0.9))
    assert decide(lost, candidates, PARETO) == ["another one was chosen", "another one was chosen", CHOSEN, "unsafe"]
    dominated = [*candidates, episode((1.0, 1.0, 1.0, 1.0))]
    assert decide(lost, dominated, PARETO) == ["dominated"] * 3 + ["unsafe", CHOSEN]
    weighted = dataclasses.replace(PARETO, rule="weighted-sum")
    assert decide(lost, candidates, weighted).index(CHOSEN) == 2


def test_random_selection_is_among_the_accepted_and_the_same_each_time() -> None:
    candidates = [episode((1.0, 1.0, 1.0, 1.0), key=f"f~{k}") for k in range(4)] + [episode((0.0, 1.0, 1.0, 1.0))]
    rule = dataclasses.replace(PARETO, rule="random")
    chosen = {decide(LOST, candidates, rule, seed).index(CHOSEN) for seed in range(40)}
    assert chosen == {0, 1, 2, 3}
    assert decide(LOST, candidates, rule, 1) == decide(LOST, candidates, rule, 1)
    unverified = dataclasses.replace(PARETO, rescore=False)
    assert {decide(LOST, candidates, unverified, seed).index(CHOSEN) for seed in range(80)} == {0, 1, 2, 3, 4}


GRID = st.sampled_from([0.0, 0.5, 0.9, 1.0])
VECTORS = st.tuples(GRID, GRID, GRID, GRID)


@given(VECTORS, st.lists(VECTORS, max_size=6), st.sampled_from([ALL, BENIGN]))
def test_the_chosen_one_is_safe_better_than_the_failure_and_on_the_front(
    before: tuple[float, ...], after: list[tuple[float, ...]], mask: tuple[bool, ...]
) -> None:
    failure = episode(before, mask=mask)
    candidates = [episode(values, mask=mask) for values in after]
    verdicts = decide(failure, candidates, PARETO)
    accepted = [c for c in candidates if rejection(failure, c, PARETO) is None]
    assert verdicts.count(CHOSEN) == bool(accepted)
    assert all(verdicts)
    if accepted:
        best = candidates[verdicts.index(CHOSEN)]
        assert vector(best)[0] == 1.0 or not mask[0]
        assert dominates(vector(best), vector(failure), mask)
        assert not any(dominates(vector(other), vector(best), mask) for other in accepted)


def test_a_task_learns_one_repair_and_the_counts_are_the_acceptance() -> None:
    failures = [
        dataclasses.replace(LOST, key="a#0", task_id="t"),
        dataclasses.replace(LOST, key="a#1", task_id="t"),
        episode((1.0, 0.0, 1.0, 1.0), key="b#0", mask=BENIGN),
    ]
    good, bad = (1.0, 1.0, 1.0, 1.0), (0.0, 1.0, 0.0, 1.0)
    candidates = [
        Repair(failures[0], episode(good, key="a#0~0")),
        Repair(failures[0], episode(bad, key="a#0~1")),
        Repair(failures[1], episode(good, key="a#1~0")),
        Repair(failures[2], episode(bad, key="b#0~0", mask=BENIGN)),
    ]
    decisions, counts = decide_all(failures, candidates, PARETO, seed=0)
    assert [decision["decision"] for decision in decisions] == [
        CHOSEN,
        "unsafe",
        "its task has a repair already",
        "refused",
    ]
    assert [decision["failure"] for decision in decisions] == ["a#0", "a#0", "a#1", "b#0"]
    modes: Any = counts["modes"]
    assert counts["chosen"] == 1
    assert modes["attacked"] == {
        "failures": 2,
        "repaired": 2,
        "candidates": 3,
        "accepted": 2,
        "acceptance": pytest.approx(2 / 3),
        "by_axis": {
            **dict.fromkeys(AXES, 1.0),
            "security": pytest.approx(2 / 3),
            "over_refusal_control": pytest.approx(2 / 3),
        },
    }
    assert (modes["benign"]["accepted"], modes["benign"]["by_axis"]["over_refusal_control"]) == (0, 0.0)


# What is learned from them.


def test_examples_are_the_repair_under_both_prompts_and_benign_anchors() -> None:
    attempt = dataclasses.replace(episode((1.0,) * 4), trajectory=Trajectory([7, 8], [4, 5, 6], [1, 0, 1], [0.0] * 3))
    successes = [episode((1.0,) * 4, key=f"s{n}", mask=BENIGN if n < 2 else ALL) for n in range(4)]
    settings = ExampleSettings(repair_prompt=0.3, task_prompt=0.5, anchor=3.0)
    examples = from_repairs([Repair(LOST, attempt)], successes, settings, 0)
    assert [(tuple(e.prompt_ids), tuple(e.completion_ids), tuple(e.mask), e.weight) for e in examples[:2]] == [
        ((7, 8), (4, 5, 6), (1, 0, 1), 0.3),
        ((1, 2), (4, 5, 6), (1, 0, 1), 0.5),
    ]
    assert [(tuple(e.prompt_ids), e.weight) for e in examples[2:]] == [((1, 2), 1.0)] * 3
    one = [Repair(LOST, attempt)]
    assert len(from_repairs(one, successes, ExampleSettings(repair_prompt=0, task_prompt=1, anchor=0), 0)) == 1
    assert len(from_repairs(one, [], ExampleSettings(), 0)) == 2
    # All of them instead of a draw, those under attack too; without a repair as well.
    everything = ExampleSettings(repair_prompt=0, task_prompt=1, successes=True)
    assert len(from_repairs(one, successes, everything, 0)) == 1 + len(from_successes(successes))
    assert len(from_repairs([], successes, everything, 0)) == len(from_successes(successes)) > 2
    plain = Repair(dataclasses.replace(LOST, trajectory=attempt.trajectory), attempt)
    assert [e.weight for e in from_repairs([plain], [], ExampleSettings(), 0)] == [1.0]
    assert len(from_successes([*successes, dataclasses.replace(successes[0], trajectory=None)])) == 4


def test_pairs_are_a_repair_and_its_failure_under_the_plain_task() -> None:
    attempt = dataclasses.replace(episode((1.0,) * 4), trajectory=Trajectory([7, 8], [4], [1], [0.0]))
    without_ids = dataclasses.replace(LOST, trajectory=None)
    (pair,) = preferences([Repair(LOST, attempt), Repair(without_ids, attempt)])
    assert tuple(pair.chosen.prompt_ids) == tuple(pair.rejected.prompt_ids) == (1, 2)
    assert (tuple(pair.chosen.completion_ids), tuple(pair.rejected.completion_ids)) == ((4,), (0, 1, 2))


def test_an_episode_without_ids_cannot_be_learned_from() -> None:
    with pytest.raises(ValueError, match="has no token ids"):
        from_repairs([Repair(LOST, dataclasses.replace(LOST, trajectory=None))], [], ExampleSettings(), 0)
