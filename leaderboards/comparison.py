"""Two runs side by side: their episodes paired by key, and every metric's difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fate_gym.chat import Json
from fate_gym.errors import UsageError
from fate_gym.evaluation.keys import Indices
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS, Metric
from fate_gym.evaluation.results import Kind, Result
from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.columns import REFUSALS, Column, column
from fate_gym.leaderboards.groups import mixed
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.statistics import Difference, Floats, difference
from fate_gym.storage import settings_apart


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of both runs, over the pairs of one attack and suite.

    Attributes:
        attack: The attack; None without one.
        suite: The suite, or "all".
        column: The metric.
        difference: Second run minus first.
    """

    attack: str | None
    suite: str
    column: Column
    difference: Difference


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs compared.

    Attributes:
        a: The first run's id.
        b: The second's.
        rows: By mode, attack, suite (all of them first) and column; only where one of them has the metric.
        only_a: Episodes that the first run alone has scored; in no row.
        only_b: Episodes that the second run alone has scored.
        settings: What they were told to do differently: agent, defences, attacks.
        warnings: What makes the two less comparable than they look.
    """

    a: str
    b: str
    rows: tuple[Compared, ...]
    only_a: int
    only_b: int
    settings: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Episodes that two runs share, by their results.

    Attributes:
        first: The first run's different results.
        second: The second's.
        a: The first run's result in each pair, as an index into `first`, (n,).
        b: The second's.
        clusters: The task of each, as a number in the order of the tasks' names.
    """

    first: Sequence[Result]
    second: Sequence[Result]
    a: Indices
    b: Indices
    clusters: Indices

    def by(self, name: Callable[[Kind], Kind]) -> dict[Kind, _Pairs]:
        """Groups the pairs by what their kind is called; both of a pair are of one kind."""
        names = [name(result.kind) for result in self.first]
        numbers = {kind: i for i, kind in enumerate(dict.fromkeys(names))}
        of_each = np.array([numbers[kind] for kind in names], dtype=np.intp)[self.a]
        order = np.argsort(of_each, kind="stable")
        ends = np.searchsorted(of_each[order], np.arange(1, len(numbers)))
        return {
            kind: replace(self, a=self.a[rows], b=self.b[rows], clusters=self.clusters[rows])
            for kind, rows in zip(numbers, np.split(order, ends), strict=True)
            if len(rows)
        }

    def difference(self, i: int, metric: Metric) -> Difference:
        """Compares both in a metric, the mode's i-th."""
        curve = None if metric.curve is None else np.vectorize(metric.curve, otypes=[np.float64])
        return difference(_column(self.first, self.a, i), _column(self.second, self.b, i), self.clusters, curve=curve)


def _column(results: Sequence[Result], each: Indices, i: int) -> Floats:
    """Returns the i-th value of each episode, (n,), NaN where the metric does not apply; all are of one mode."""
    used, which = np.unique(each, return_inverse=True)
    return np.array([results[index].values[i] for index in used.tolist()], dtype=np.float64)[which]


def compare(a: LoadedRun, b: LoadedRun, *, every_suite: bool = True) -> Comparison:
    """Compares two runs of one environment on the episodes that both have scored. No episode is read for it.

    Args:
        a: The first run.
        b: The second.
        every_suite: Whether each suite is compared by itself too, not only all together.

    Raises:
        UsageError: They are runs of different environments, or share no episode.
    """
    envs = a.manifest["config"]["env"], b.manifest["config"]["env"]
    if envs[0] != envs[1]:
        raise UsageError(f"runs of different environments cannot be compared: {envs[0]} and {envs[1]}")
    pairs = _pairs(a, b)
    shared = len(pairs.a)
    if not shared:
        raise UsageError(f"{a.path} and {b.path} have no episode in common: other tasks, attacks or suites")
    every = pairs.by(lambda kind: (*kind[:2], ALL)) | (pairs.by(lambda kind: kind) if every_suite else {})
    unlike = _refusals_by_both_kinds(a, b)
    rows = [
        Compared(attack, suite, column(mode, metric.name), difference)
        for (mode, attack, suite), some in sorted(every.items(), key=_order)
        for i, metric in enumerate(METRICS.get(mode, AXIS_METRICS))
        if not (unlike and column(mode, metric.name).name in REFUSALS)
        if (difference := some.difference(i, metric)).a is not None or difference.b is not None
    ]
    warnings = [*_warnings(a, b), *(["refusals were told by a rule and by a judge: not compared"] if unlike else [])]
    missing = len(a.episodes) - shared, len(b.episodes) - shared
    return Comparison(a.run_id, b.run_id, tuple(rows), *missing, tuple(_settings(a, b)), tuple(warnings))


def _pairs(a: LoadedRun, b: LoadedRun) -> _Pairs:
    """Pairs the episodes of one key, mode, attack and suite."""
    first, second = a.episodes.results, b.episodes.results
    one, other = a.episodes.paired_results(b.episodes)
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(result.kind for result in (*first, *second)))}
    mine, theirs = (np.array([numbers[result.kind] for result in results], np.intp) for results in (first, second))
    alike = mine[one] == theirs[other]
    ranks = {name: i for i, name in enumerate(sorted({result.cluster for result in first}))}
    clusters = np.array([ranks[result.cluster] for result in first], np.intp)
    return _Pairs(first, second, one[alike], other[alike], clusters[one[alike]])


def _order(entry: tuple[Kind, object]) -> tuple[str | bool, ...]:
    mode, attack, suite = entry[0]
    return mode, attack or "", suite != ALL, suite


def _refusals_by_both_kinds(a: LoadedRun, b: LoadedRun) -> bool:
    return mixed([rule for run in (a, b) for group in run.summary["groups"] for rule in group["refusals_by"]])


def _settings(a: LoadedRun, b: LoadedRun) -> Iterator[str]:
    """Yields the settings that say what was measured, where these differ."""
    chosen = ("agent", "agent_args", "defences", "attack", "repeats")
    configs = [{name: run.manifest["config"].get(name) for name in chosen} for run in (a, b)]
    return _apart(*configs)


def _warnings(a: LoadedRun, b: LoadedRun) -> list[str]:
    """Names what one run had and the other had not, though the numbers depend on it."""
    grounds = [
        {
            "versions": run.manifest.get("versions"),
            "provenance": _provenance(run),
            "env_args": {**run.manifest["config"]["env_args"], "suite": None},
        }
        for run in (a, b)
    ]
    warnings = [f"the runs differ in {difference}" for difference in _apart(*grounds)]
    for run in (a, b):
        if errors := run.summary["episodes"]["errors"]:
            warnings.append(f"{run.run_id}: {errors} episodes errored and are in no pair")
        if run.contaminated_by:
            warnings.append(f"{run.run_id}: trained on {', '.join(run.contaminated_by)}")
    return warnings


def _apart(a: Mapping[str, Json], b: Mapping[str, Json]) -> Iterator[str]:
    """Names what differs; an empty mapping says no more than none, and what stands in the other is named by itself."""
    for name, one, other in settings_apart(a, b):
        if {one, other} != {"nothing", "{}"}:
            yield f"{name}: A {one}, B {other}"


def _provenance(run: LoadedRun) -> Json:
    """Returns what the benchmark said of itself; a run has it once for each attack, mostly the same."""
    listed = run.manifest.get("provenance")
    unlike = [entry for i, entry in enumerate(listed) if entry not in listed[:i]] if isinstance(listed, list) else []
    return unlike[0] if len(unlike) == 1 else {str(i): entry for i, entry in enumerate(unlike)}
