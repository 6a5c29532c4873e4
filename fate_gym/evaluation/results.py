"""What episodes came to, as far as anybody counts it. Summaries, boards and comparisons are all made of it.

Of a million episodes, repeats of some thousand tasks, few came to different things. So each different result is held
once, and of each episode a number.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from fate_gym.episode import Episode
from fate_gym.evaluation.keys import Indices
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS
from fate_gym.rewards import AXES
from fate_gym.transcript import Status

Kind: TypeAlias = tuple[str, str | None, str]
"""Mode, attack and suite."""

Values: TypeAlias = tuple[float | None, ...]
"""What the metrics of a mode read from an episode."""


class Result(NamedTuple):
    """What is counted of an episode.

    Attributes:
        kind: Mode, attack and suite.
        task_id: The task.
        cluster: Its cluster.
        status: "ok", or why it is not scored.
        axes: Of each axis, in the order of `AXES`, its value and whether that counts.
        values: What the metrics of the mode read from the episode.
        truncated: Whether it was cut off.
        content_filtered: Whether the provider's content filter stopped it.
        refusals_by: The rule that decided whether the agent refused.
        grader_errors: The axes whose graders failed.
    """

    kind: Kind
    task_id: str
    cluster: str
    status: Status
    axes: tuple[tuple[float, bool], ...]
    values: Values
    truncated: bool
    content_filtered: bool
    refusals_by: str
    grader_errors: tuple[str, ...]

    @classmethod
    def of(cls, episode: Episode) -> Result:
        """Reads it from an episode."""
        verdict = episode.verdict
        axes = verdict.security, verdict.utility, verdict.over_refusal_control, verdict.validity
        return cls(
            (episode.mode, episode.attack, episode.suite),
            episode.task_id,
            episode.cluster,
            episode.status,
            tuple([(axis.value, axis.active) for axis in axes]),
            tuple([metric.value(episode) for metric in METRICS.get(episode.mode, AXIS_METRICS)]),
            episode.truncated,
            episode.content_filtered,
            verdict.over_refusal_control.rule,
            tuple([name for name in AXES if getattr(verdict, name).error]),
        )


class Results:
    """The results of episodes, in the order in which they were added."""

    def __init__(self) -> None:
        self._indices: dict[Result, int] = {}
        self._each = array("i")

    def add(self, result: Result) -> None:
        """Adds the result of an episode."""
        self._each.append(self._indices.setdefault(result, len(self._indices)))

    @property
    def different(self) -> Sequence[Result]:
        """Each different result once, in the order in which they first came."""
        return tuple(self._indices)

    @property
    def each(self) -> Indices:
        """For every episode the index of its result in `different`, (n,)."""
        return np.array(self._each, dtype=np.intp)
