"""A run's summary: the paper's metrics for each mode, attack and suite, with n and interval, errors beside them.

Which metrics there are, and what each is the mean of, stands in `fate_gym.evaluation.metrics`. Truncated episodes
count. Episodes that errored are counted apart and never scored; an axis whose grader failed is left out of that axis
alone and counted under `grader_errors`. Intervals allow for user tasks (clusters), since the pairs of one user task are
not independent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fate_gym.chat import Json
from fate_gym.episode import LEFT_OUT, Episode
from fate_gym.evaluation.intervals import Estimate, pass_hat_k
from fate_gym.evaluation.keys import KeyList, Keys
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS, Metric, refused
from fate_gym.evaluation.results import Kind, Result, Results, Values

SCHEMA = "fate-gym/summary/1"
ALL = "all"


def summarise(
    episodes: Iterable[Episode], failures: Iterable[Episode], manifest: Mapping[str, Any], planned: Iterable[str]
) -> dict[str, Json]:
    """Computes a run's summary; see `Tally`.

    Args:
        episodes: Scored episodes, as stored.
        failures: Episodes that errored, as stored; those that succeeded later are no errors any more.
        manifest: The run's.
        planned: Keys of all its episodes.
    """
    tally, done = Tally(), Keys()
    for episode in episodes:
        done.add(episode.key)
        tally.add(Result.of(episode), episode.usage, episode.seconds["total"])
    return tally.summary(done, failures, manifest, planned)


class Tally:
    """What scored episodes add up to: each is counted by its result, and forgotten.

    Attributes:
        results: Of all that were counted.
    """

    def __init__(self) -> None:
        self.results = Results()
        self._spent: dict[Kind, _Spent] = {}

    def add(self, result: Result, usage: Mapping[str, float], seconds: float | None) -> None:
        """Counts a scored episode.

        Args:
            result: What it came to.
            usage: As in the episode.
            seconds: How long it took, None where that is unknown.
        """
        self.results.add(result)
        for key in _keys(*result.kind):
            (self._spent.get(key) or self._spent.setdefault(key, _Spent())).add(usage, seconds)

    def summary(
        self, done: Keys, failures: Iterable[Episode], manifest: Mapping[str, Any], planned: Iterable[str]
    ) -> dict[str, Json]:
        """Computes the summary of a run; see `summarise`.

        Args:
            done: Keys of the episodes that were counted.
            failures: As there.
            manifest: As there.
            planned: As there.
        """
        groups: dict[Kind, _Group] = {}
        counts = np.bincount(self.results.each, minlength=len(self.results.different))
        for result, count in zip(self.results.different, counts.tolist(), strict=True):
            for key in _keys(*result.kind):
                groups.setdefault(key, _Group(key, self._spent[key])).add(result, count)
        errored, failed = _errors(failures, done)
        for kind, count in failed.items():
            for key in _keys(kind.mode, kind.attack, kind.suite):
                groups.setdefault(key, _Group(key, _Spent())).errors[kind.status] += count
        keys = Keys(planned)
        return {
            "schema": SCHEMA,
            "agent": "+".join([manifest["config"]["agent"], *manifest["config"]["defences"]]),
            "env": manifest["config"]["env"],
            "config": manifest["config"],
            "digest": manifest["digest"],
            "episodes": {
                "planned": len(keys),
                "scored": len(done),
                "errors": len(errored),
                "missing": len(keys.minus(done).minus(errored)),
            },
            "groups": [group.summary() for _, group in sorted(groups.items(), key=lambda entry: str(entry[0]))],
        }


def _keys(mode: str, attack: str | None, suite: str) -> tuple[Kind, Kind]:
    """The groups of an episode: that of its suite, and that of all suites together."""
    return (mode, attack, ALL), (mode, attack, suite)


class _Failed(NamedTuple):
    mode: str
    attack: str | None
    suite: str
    status: str


def _errors(failures: Iterable[Episode], done: Keys) -> tuple[Keys, Counter[_Failed]]:
    """Returns the keys of the episodes that never succeeded, and how many of them their last attempts left as what."""
    keys, attempts = KeyList(), []
    known: dict[_Failed, _Failed] = {}
    for failure in failures:
        if failure.key not in done:
            kind = _Failed(failure.mode, failure.attack, failure.suite, failure.status)
            keys.append(failure.key)
            attempts.append(known.setdefault(kind, kind))
    last = keys.in_order().tolist()
    return Keys(keys.at(last)), Counter(attempts[i] for i in last)


class _Spent:
    """Time and usage, which differ from episode to episode; added as they come, so that sums round in one way alone."""

    def __init__(self) -> None:
        self.usage: dict[str, float] = {}
        self.reported: Counter[str] = Counter()
        self.seconds = 0.0
        self.timed = 0

    def add(self, usage: Mapping[str, float], seconds: float | None) -> None:
        for name, value in usage.items():
            self.usage[name] = self.usage.get(name, 0) + value
            self.reported[name] += 1
        if seconds is not None:
            self.seconds += seconds
            self.timed += 1


class _Group:
    """Counts of the episodes of one mode, attack and suite."""

    def __init__(self, key: Kind, spent: _Spent) -> None:
        self._key = key
        self._spent = spent
        self._metrics = METRICS.get(key[0], AXIS_METRICS)
        self._refused = next((i for i, metric in enumerate(self._metrics) if metric.value is refused), None)
        # By task, cluster and values.
        self._outcomes: Counter[tuple[str, str, Values]] = Counter()
        self._grader_errors: Counter[str] = Counter()
        self._truncated = 0
        self._content_filtered = 0
        self._refusals_by: set[str] = set()
        self.errors: Counter[str] = Counter()

    def add(self, result: Result, count: int) -> None:
        """Counts scored episodes of one result."""
        self._outcomes[result.task_id, result.cluster, result.values] += count
        for name in result.grader_errors:
            self._grader_errors[name] += count
        self._truncated += count * result.truncated
        self._content_filtered += count * result.content_filtered
        if self._refused is not None and result.values[self._refused] is not None:
            self._refusals_by.add(result.refusals_by)

    def summary(self) -> dict[str, Json]:
        mode, attack, suite = self._key
        n = self._outcomes.total()
        columns = {metric: self._column(i) for i, metric in enumerate(self._metrics)}
        columns = {metric: column for metric, column in columns.items() if column or not metric.optional}
        summary: dict[str, Json] = {
            "mode": mode,
            "attack": attack,
            "suite": suite,
            "n": n,
            "clusters": len({cluster for _, cluster, _ in self._outcomes}),
            "errors": dict(self.errors),
            "grader_errors": dict(self._grader_errors),
            "truncated": self._truncated,
            # Nothing where there are none, as in older summaries.
            **({"content_filtered": self._content_filtered} if self._content_filtered else {}),
            "refusals_by": sorted(self._refusals_by),
            "metrics": {
                metric.name: dataclasses.asdict(_estimate(metric, column)) for metric, column in columns.items()
            },
            # None where some episode does not know its own, but for the count of what was left out.
            "usage": {
                name: total if self._spent.reported[name] == n or name == LEFT_OUT else None
                for name, total in sorted(self._spent.usage.items())
            },
            "mean_seconds": round(self._spent.seconds / n, 4) if 0 < n == self._spent.timed else None,
        }
        repeats: Counter[str] = Counter()
        for (task_id, _, _), count in self._outcomes.items():
            repeats[task_id] += count
        if repeats and max(repeats.values()) > 1:
            k = min(repeats.values())
            chances = {
                metric.name: _pass_hat_k(column, metric.good, k)
                for metric, column in columns.items()
                if metric.per_task
            }
            summary["pass_hat_k"] = {"k": k, **chances}
        return summary

    def _column(self, i: int) -> _Column:
        """Returns how often a metric had each of its values, by task and cluster."""
        column: _Column = Counter()
        for (task_id, cluster, values), count in self._outcomes.items():
            if (value := values[i]) is not None:
                column[task_id, cluster, value] += count
        return column


_Column = Counter[tuple[str, str, float]]


def _estimate(metric: Metric, column: _Column) -> Estimate:
    values: Counter[tuple[str, float]] = Counter()
    for (_, cluster, value), count in column.items():
        values[cluster, value] += count
    return metric.estimate(values)


def _pass_hat_k(column: _Column, good: float, k: int) -> float | None:
    """Returns the probability that all k repeats of a task have the good value."""
    tries: Counter[str] = Counter()
    successes: Counter[str] = Counter()
    for (task_id, _, value), count in column.items():
        tries[task_id] += count
        successes[task_id] += count * (value == good)
    return pass_hat_k([(successes[task_id], n) for task_id, n in tries.items()], k)
