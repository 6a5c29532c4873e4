"""Two runs side by side: their episodes paired by key, and every metric's difference."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.errors import UsageError
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS, Metric
from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.columns import REFUSALS, Column, column
from fate_gym.leaderboards.groups import mixed
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.statistics import Difference, difference
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
class Score:
    """What a comparison needs of an episode.

    Attributes:
        group: Mode, attack and suite.
        cluster: The task's cluster.
        values: Its metrics in the order of `METRICS`; NaN where one does not apply.
    """

    group: tuple[str, str | None, str]
    cluster: str
    values: tuple[float, ...]


Scores: TypeAlias = Mapping[str, Score]
"""The scored episodes of a run by key."""


def score(episode: Episode) -> Score:
    """Reads from an episode what a comparison needs of it."""
    values = tuple(_value(metric, episode) for metric in METRICS.get(episode.mode, AXIS_METRICS))
    return Score((episode.mode, episode.attack, episode.suite), episode.cluster, values)


def compare(a: LoadedRun, b: LoadedRun) -> Comparison:
    """Compares two runs of one environment on the episodes that both have scored.

    Raises:
        UsageError: They are runs of different environments, or share no episode.
    """
    first, second = ({e.key: score(e) for e in run.episodes} for run in (a, b))
    return compare_scores(a, b, first, second)


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
    shared = sorted(key for key, score in first.items() if key in second and score.group == second[key].group)
    if not shared:
        raise UsageError(f"{a.path} and {b.path} have no episode in common: other tasks, attacks or suites")
    groups: dict[tuple[str, str | None, str], list[str]] = defaultdict(list)
    for key in shared:
        mode, attack, suite = first[key].group
        for name in (ALL, suite) if every_suite else (ALL,):
            groups[mode, attack, name].append(key)
    unlike = _refusals_by_both_kinds(a, b)
    rows = [
        Compared(attack, suite, column(mode, metric.name), found)
        for (mode, attack, suite), keys in sorted(groups.items(), key=_order)
        for i, metric in enumerate(METRICS.get(mode, AXIS_METRICS))
        if not (unlike and column(mode, metric.name).name in REFUSALS)
        if (found := _difference(i, metric, keys, first, second)).a is not None or found.b is not None
    ]
    warnings = [*_warnings(a, b), *(["refusals were told by a rule and by a judge: not compared"] if unlike else [])]
    missing = len(first) - len(shared), len(second) - len(shared)
    return Comparison(a.run_id, b.run_id, tuple(rows), *missing, tuple(_settings(a, b)), tuple(warnings))


def _value(metric: Metric, episode: Episode) -> float:
    value = metric.value(episode)
    return math.nan if value is None else value


def _difference(i: int, metric: Metric, keys: Sequence[str], first: Scores, second: Scores) -> Difference:
    a, b = ([scores[key].values[i] for key in keys] for scores in (first, second))
    curve = None if metric.curve is None else np.vectorize(metric.curve, otypes=[np.float64])
    return difference(a, b, [first[key].cluster for key in keys], curve=curve)


def _order(entry: tuple[tuple[str, str | None, str], object]) -> tuple[str | bool, ...]:
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
