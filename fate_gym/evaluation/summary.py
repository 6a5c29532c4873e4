"""A run's summary: the paper's metrics for each mode, attack and suite, with n and interval, errors beside them.

Which metrics there are, and what each is the mean of, stands in `fate_gym.evaluation.metrics`. Truncated episodes
count. Episodes that errored are counted apart and never scored; an axis whose grader failed is left out of that axis
alone and counted under `grader_errors`. Intervals allow for user tasks (clusters), since the pairs of one user task are
not independent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fate_gym.chat import Json
from fate_gym.episode import LEFT_OUT, Episode
from fate_gym.evaluation.intervals import pass_hat_k
from fate_gym.evaluation.metrics import AXIS_METRICS, METRICS, refused
from fate_gym.rewards import Verdict

SCHEMA = "fate-gym/summary/1"
ALL = "all"


def summarise(
    episodes: Iterable[Episode], failures: Iterable[Episode], manifest: Mapping[str, Any], planned: Iterable[str]
) -> dict[str, Json]:
    """Computes a run's summary.

    Args:
        episodes: Scored episodes, as stored.
        failures: Episodes that errored, as stored; those that succeeded later are no errors any more.
        manifest: The run's.
        planned: Keys of all its episodes.
    """
    slim = [_slim(episode) for episode in episodes]
    done = {episode.key for episode in slim}
    errors = {failure.key: _slim(failure) for failure in failures if failure.key not in done}
    keys = set(planned)
    groups = _groups([*slim, *errors.values()])
    return {
        "schema": SCHEMA,
        "agent": "+".join([manifest["config"]["agent"], *manifest["config"]["defences"]]),
        "env": manifest["config"]["env"],
        "config": manifest["config"],
        "digest": manifest["digest"],
        "episodes": {
            "planned": len(keys),
            "scored": len(done),
            "errors": len(errors),
            "missing": len(keys - done - set(errors)),
        },
        "groups": [_group(key, members) for key, members in sorted(groups.items(), key=lambda entry: str(entry[0]))],
    }


def _slim(episode: Episode) -> Episode:
    """Keeps what metrics need; a hundred thousand whole episodes would not fit into memory."""
    axes = {name: dataclasses.replace(axis, evidence=()) for name, axis in episode.verdict.axes.items()}
    # The last action says whether a content filter stopped the episode.
    actions = episode.actions[-1:] if episode.content_filtered else []
    return dataclasses.replace(
        episode, verdict=Verdict(**axes), metadata={}, injections={}, messages=[], actions=actions, calls=()
    )


_Key = tuple[str, str | None, str]


def _groups(episodes: Iterable[Episode]) -> dict[_Key, list[Episode]]:
    """Sorts episodes by (mode, attack, suite), and again with all suites together."""
    groups: dict[_Key, list[Episode]] = defaultdict(list)
    for episode in episodes:
        for suite in (ALL, episode.suite):
            groups[episode.mode, episode.attack, suite].append(episode)
    return groups


def _group(key: _Key, members: list[Episode]) -> dict[str, Json]:
    mode, attack, suite = key
    scored = [episode for episode in members if episode.status == "ok"]
    values = {metric: metric.values(scored) for metric in METRICS.get(mode, AXIS_METRICS)}
    values = {metric: pairs for metric, pairs in values.items() if pairs or not metric.optional}
    summary: dict[str, Json] = {
        "mode": mode,
        "attack": attack,
        "suite": suite,
        "n": len(scored),
        "clusters": len({episode.cluster for episode in scored}),
        "errors": dict(Counter(episode.status for episode in members if episode.status != "ok")),
        "grader_errors": _grader_errors(scored),
        "truncated": sum(episode.truncated for episode in scored),
        **_content_filtered(scored),
        "refusals_by": sorted(
            {
                episode.verdict.over_refusal_control.rule
                for metric, pairs in values.items()
                if metric.value is refused
                for episode, _ in pairs
            }
        ),
        "metrics": {metric.name: dataclasses.asdict(metric.estimate(pairs)) for metric, pairs in values.items()},
        "usage": _usage(scored),
        "mean_seconds": _mean_known([episode.seconds["total"] for episode in scored]),
    }
    repeats = Counter(episode.task_id for episode in scored)
    if repeats and max(repeats.values()) > 1:
        k = min(repeats.values())
        chances = {
            metric.name: _pass_hat_k(pairs, metric.good, k) for metric, pairs in values.items() if metric.per_task
        }
        summary["pass_hat_k"] = {"k": k, **chances}
    return summary


def _pass_hat_k(values: list[tuple[Episode, float]], good: float, k: int) -> float | None:
    """Returns the probability that all k repeats of a task have the good value."""
    tries: dict[str, list[bool]] = defaultdict(list)
    for episode, value in values:
        tries[episode.task_id].append(value == good)
    return pass_hat_k([(sum(results), len(results)) for results in tries.values()], k)


def _grader_errors(episodes: list[Episode]) -> dict[str, int]:
    return dict(Counter(name for episode in episodes for name, axis in episode.verdict.axes.items() if axis.error))


def _content_filtered(episodes: list[Episode]) -> dict[str, Json]:
    """Counts the episodes that a content filter stopped; nothing where there are none, as in older summaries."""
    count = sum(episode.content_filtered for episode in episodes)
    return {"content_filtered": count} if count else {}


def _usage(episodes: list[Episode]) -> dict[str, float | None]:
    """Returns totals; None where some episode does not know its own, but for the count of what was left out."""
    names = sorted({name for episode in episodes for name in episode.usage})
    totals: dict[str, float | None] = {}
    for name in names:
        known = [episode.usage[name] for episode in episodes if name in episode.usage]
        totals[name] = sum(known) if len(known) == len(episodes) or name == LEFT_OUT else None
    return totals


def _mean_known(values: list[float | None]) -> float | None:
    """Returns the mean; None where a value is unknown."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known and len(known) == len(values) else None
