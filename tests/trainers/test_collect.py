"""Stage 1: what a failure is, what doing nothing is worth, and what the gate reads."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_episodes import verdict_of

from fate_gym.agents import Agent, load_agent
from fate_gym.episode import Episode
from fate_gym.errors import FateGymError
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.rewards import AXES
from fate_gym.trainers.config import CollectSettings
from fate_gym.trainers.gate import competence
from fate_gym.trainers.progress import RunningMeans
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages._rollouts import unscored
from fate_gym.trainers.stages.collect import collect, failed
from fate_gym.trainers.tasks import idle_tasks, sample, training_plan

THRESHOLDS = CollectSettings().thresholds


MakeRound = Callable[..., Round]


def depot(**env_args: Any) -> Plan:
    return training_plan([TaskSet("toy/Depot-v0", env_args=env_args)], 0)


@pytest.fixture(scope="module")
def episode() -> Episode:
    plan = depot()
    (result,) = asyncio.run(sample(plan, load_agent("oracle"), plan.items[-1:]))
    return result


@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(*[st.booleans()] * 4))
def test_an_episode_failed_if_an_active_axis_is_below_its_threshold(
    episode: Episode, vector: tuple[float, ...], mask: tuple[bool, ...]
) -> None:
    below = [value < least for value, least in zip(vector, THRESHOLDS, strict=True)]
    expected = any(low and active for low, active in zip(below, mask, strict=True))
    assert failed(dataclasses.replace(episode, verdict=verdict_of(vector, mask)), THRESHOLDS) == expected


def test_failures_and_successes_are_kept_apart(make_round: MakeRound) -> None:
    this_round = make_round(load_agent("gullible"))
    failures, successes = collect("gullible", this_round)
    assert {episode.mode for episode in successes} == {"benign"}
    assert {episode.mode for episode in failures} == {"attacked"}
    counts = this_round.outcome("collect")
    assert counts is not None
    assert len(failures) + len(successes) == counts["records"] == 12
    assert counts["failed"] == len(failures)
    assert competence([*failures, *successes]) == {"earned_utility": 1.0, "ASR": 1.0, "reached": 1.0}
    assert collect("gullible", this_round) == (failures, successes)


def test_competence_speaks_only_of_what_there_is() -> None:
    assert competence([]) == {"earned_utility": None, "ASR": None, "reached": None}


def test_doing_nothing_passes_no_depot_task_and_five_of_banking() -> None:
    assert idle_tasks(depot()) == frozenset()
    banking = TaskSet(env_args={"suite": "banking", "split": "train"})
    passed = idle_tasks(training_plan([banking], 0))
    assert passed == {f"banking/user_task_{number}" for number in (5, 6, 8, 9, 10)}


def test_episodes_without_a_whole_verdict_are_counted_and_left_out(make_round: MakeRound) -> None:
    broken = TaskSet("toy/Depot-v0", env_args={"broken": "grader"}, tasks=("depot/ship/0",))
    with pytest.raises(FateGymError, match="not one episode of stage collect could be scored; one of them: utility"):
        collect("oracle", make_round(load_agent("oracle"), train=(broken,)))
    (result,) = asyncio.run(sample(depot(), load_agent("import:shop_plugin:absent"), depot().items[:1]))
    assert "nobody at the counter" in str(unscored(result))


def test_an_errored_episode_is_tried_again_and_a_kept_one_is_not(make_round: MakeRound) -> None:
    asked: list[str] = []
    oracle = load_agent("oracle")

    class Moody(Agent):
        name, privileged = "moody", True

        def start(self, task: Any, seed: int) -> Any:
            asked.append(task.id)
            if len(asked) == 5:
                raise KeyboardInterrupt
            return oracle.start(task, seed)

    this_round = make_round(Moody(), concurrency=1, collect=CollectSettings(leave_out_noop=False))
    with pytest.raises(KeyboardInterrupt):
        collect("moody", this_round)
    failures, successes = collect("moody", this_round)
    assert len([*failures, *successes]) == 12
    assert len(asked) == 13
    counts = this_round.outcome("collect")
    assert counts is not None
    assert counts["errors"] == {}


def test_means_leave_inactive_axes_out() -> None:
    means = RunningMeans()
    assert str(means) == ""
    means.add((1.0, 0.0, 1.0, 1.0), (False, True, True, True))
    means.add((0.0, 1.0, 1.0, 1.0), (True, True, True, True))
    assert str(means) == "sec .00 util .50 ref 1.00 val 1.00"
    assert len(AXES) == 4
