"""Statements that are written down before a study's results, and what the results then say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from fate_gym.trainers.study.arms import ARMS, BASE
from fate_gym.trainers.study.statistics import Mean, mean

Finding: TypeAlias = Literal["held", "refuted", "undecided"]
Sense: TypeAlias = Literal["at_most", "at_least"]

METRICS: Final = ("ASR", "TSR", "reached", "earned_utility", "BRR", "validity", "hypervolume")
"""The metrics of a study."""

Values: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Test set -> metric -> replicate -> value, of one arm."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A statement about means over replicates: an arm's metric is at most, or at least, `times` another arm's + `plus`.

    It is linear in both values, so that it says something where the other arm's is 0 too.

    Attributes:
        name: Name of the hypothesis that it belongs to; one may need several statements.
        test: The test set.
        metric: One of `METRICS`.
        arm: The arm that it speaks of.
        sense: Whether the bound is an upper or a lower one.
        than: The arm that bounds it; "base" for the policy before training.
        times: Factor of that arm's value.
        plus: Added to it, as a share of 1: 0.05 is five points.
        expected: What was expected to be found.
    """

    name: str
    test: str
    metric: str
    arm: str
    sense: Sense
    than: str = BASE
    times: float = 1.0
    plus: float = 0.0
    expected: Finding = "held"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"no metric {self.metric!r}; there are: {', '.join(METRICS)}")
        for arm in (self.arm, self.than):
            if arm not in (BASE, *ARMS):
                raise ValueError(f"no arm {arm!r}; there are: {BASE}, {', '.join(ARMS)}")

    def __str__(self) -> str:
        bound = self.than if self.times == 1 else f"{100 * self.times:g} % of {self.than}"
        if self.plus:
            bound += f" {'+' if self.plus > 0 else '-'} {100 * abs(self.plus):g} points"
        return f"{self.test}: {self.metric} of {self.arm} {'<=' if self.sense == 'at_most' else '>='} {bound}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the results say of a statement.

    Attributes:
        margin: By how much it is true, the mean over the replicates that have both arms; negative where it is false.
        found: "held" if the statement is true of the mean and of its whole interval, "refuted" if it is false of both,
            else "undecided".
    """

    margin: Mean
    found: Finding


def judge(hypothesis: Hypothesis, arms: Mapping[str, Values]) -> Judgement | None:
    """Compares a statement with the values of the arms; None if no replicate has both arms."""
    first, second = (
        arms.get(arm, {}).get(hypothesis.test, {}).get(hypothesis.metric, {})
        for arm in (hypothesis.arm, hypothesis.than)
    )
    sign = 1 if hypothesis.sense == "at_most" else -1
    margins = [
        sign * (hypothesis.times * second[name] + hypothesis.plus - first[name]) for name in first if name in second
    ]
    if not margins:
        return None
    margin = mean(margins)
    if margin.low is None or margin.high is None:
        return Judgement(margin, "undecided")
    return Judgement(margin, "held" if margin.low >= 0 else "refuted" if margin.high < 0 else "undecided")
