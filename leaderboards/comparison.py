"""Two runs side by side: their episodes paired by key, and every metric's difference."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.errors import UsageError
from fate_gym.evaluation.keys import KeyList
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS, Metric
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


_Key: TypeAlias = tuple[str, str | None, str]
"""Mode, attack and suite."""


class Scores:
    """What comparisons need of a run's scored episodes, in columns: some sixty bytes for each.

    Args:
        episodes: The episodes.
    """

    def __init__(self, episodes: Iterable[Episode] = ()) -> None:
        self.tables: dict[_Key, Table] = {}
        for episode in episodes:
            self.add(episode)

    def add(self, episode: Episode) -> None:
        """Adds an episode."""
        key = episode.mode, episode.attack, episode.suite
        (self.tables.get(key) or self.tables.setdefault(key, Table(episode.mode))).add(episode)

    def __len__(self) -> int:
        return sum(len(table.keys) for table in self.tables.values())


class Table:
    """The scores of one mode, attack and suite.

    Args:
        mode: The mode.

    Attributes:
        keys: Keys of the episodes.
    """

    def __init__(self, mode: str) -> None:
        self.keys = KeyList()
        self._mode = mode
        self._names: dict[str, int] = {}
        self._clusters = array("l")
        self._values = array("d")

    def add(self, episode: Episode) -> None:
        """Adds an episode."""
        self.keys.append(episode.key)
        self._clusters.append(self._names.setdefault(episode.cluster, len(self._names)))
        values = (metric.value(episode) for metric in METRICS.get(self._mode, AXIS_METRICS))
        self._values.extend(math.nan if value is None else value for value in values)

    def pairs(self, other: Table) -> Paired:
        """Returns the scores of the episodes that both have."""
        mine, theirs = self.keys.shared(other.keys)
        names = list(self._names)
        clusters = [names[i] for i in np.array(self._clusters)[mine].tolist()]
        return Paired(self._rows(mine), other._rows(theirs), clusters)

    def _rows(self, indices: NDArray[np.intp]) -> Floats:
        return np.array(self._values).reshape(len(self.keys), -1)[indices]


@dataclass(frozen=True, slots=True)
class Paired:
    """Episodes that two runs share.

    Attributes:
        a: The first run's values, (n, metrics); NaN where a metric does not apply.
        b: The second's.
        clusters: The first's tasks, n.
    """

    a: Floats
    b: Floats
    clusters: list[str]

    def __add__(self, other: Paired) -> Paired:
        return Paired(
            np.concatenate([self.a, other.a]), np.concatenate([self.b, other.b]), self.clusters + other.clusters
        )

    def difference(self, i: int, metric: Metric) -> Difference:
        """Compares both in a metric, the mode's i-th."""
        curve = None if metric.curve is None else np.vectorize(metric.curve, otypes=[np.float64])
        return difference(self.a[:, i], self.b[:, i], self.clusters, curve=curve)


def compare(a: LoadedRun, b: LoadedRun) -> Comparison:
    """Compares two runs of one environment on the episodes that both have scored.

    Raises:
        UsageError: They are runs of different environments, or share no episode.
    """
    return compare_scores(a, b, Scores(a.episodes), Scores(b.episodes))


def compare_scores(
    a: LoadedRun, b: LoadedRun, first: Scores, second: Scores, *, every_suite: bool = True
) -> Comparison:
    """Compares two runs whose scores are known.

    Args:
        a: The first run.
        b: The second.
        first: Its scores.
        second: The second's.
        every_suite: Whether each suite is compared by itself too, not only all together.

    Raises:
        UsageError: They are runs of different environments, or share no episode.
    """
    envs = a.manifest["config"]["env"], b.manifest["config"]["env"]
    if envs[0] != envs[1]:
        raise UsageError(f"runs of different environments cannot be compared: {envs[0]} and {envs[1]}")
    every: dict[_Key, Paired] = {}
    shared = 0
    for (mode, attack, suite), table in first.tables.items():
        found = table.pairs(second.tables[mode, attack, suite]) if (mode, attack, suite) in second.tables else None
        if found is None or not found.clusters:
            continue
        shared += len(found.clusters)
        whole = every.get((mode, attack, ALL))
        every[mode, attack, ALL] = found if whole is None else whole + found
        if every_suite:
            every[mode, attack, suite] = found
    if not shared:
        raise UsageError(f"{a.path} and {b.path} have no episode in common: other tasks, attacks or suites")
    unlike = _refusals_by_both_kinds(a, b)
    rows = [
        Compared(attack, suite, column(mode, metric.name), difference)
        for (mode, attack, suite), pairs in sorted(every.items(), key=_order)
        for i, metric in enumerate(METRICS.get(mode, AXIS_METRICS))
        if not (unlike and column(mode, metric.name).name in REFUSALS)
        if (difference := pairs.difference(i, metric)).a is not None or difference.b is not None
    ]
    warnings = [*_warnings(a, b), *(["refusals were told by a rule and by a judge: not compared"] if unlike else [])]
    missing = len(first) - shared, len(second) - shared
    return Comparison(a.run_id, b.run_id, tuple(rows), *missing, tuple(_settings(a, b)), tuple(warnings))


def _order(entry: tuple[_Key, object]) -> tuple[str | bool, ...]:
    mode, attack, suite = entry[0]
    return mode, attack or "", suite != ALL, suite


def _refusals_by_both_kinds(a: LoadedRun, b: LoadedRun) -> bool:
    return mixed([rule for run in (a, b) for group in run.summary["groups"] for rule in group["refusals_by"]])


def _settings(a: LoadedRun, b: LoadedRun) -> Iterator[str]:
    """Yields the settings that say what was measured, where these differ."""
    chosen = ("agent", "agent_args", "defences", "attack", "repeats")
    configs = [{name: run.manifest["config"].get(name) for name in chosen} for run in (a, b)]
    return (f"{name}: A {one}, B {other}" for name, one, other in settings_apart(*configs))


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
    warnings = [f"the runs differ in {name}: A {one}, B {other}" for name, one, other in settings_apart(*grounds)]
    for run in (a, b):
        if errors := run.summary["episodes"]["errors"]:
            warnings.append(f"{run.run_id}: {errors} episodes errored and are in no pair")
        if run.contaminated_by:
            warnings.append(f"{run.run_id}: trained on {', '.join(run.contaminated_by)}")
    return warnings


def _provenance(run: LoadedRun) -> Json:
    """Returns what the benchmark said of itself; a run has it once for each attack, mostly the same."""
    listed = run.manifest.get("provenance")
    unlike = [entry for i, entry in enumerate(listed) if entry not in listed[:i]] if isinstance(listed, list) else []
    return unlike[0] if len(unlike) == 1 else {str(i): entry for i, entry in enumerate(unlike)}
