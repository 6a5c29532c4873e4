"""The report of a study: over its replicates, the scores of every arm, FATE's paired differences to them, and costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fate_gym.trainers.study.arms import ARMS, BASE
from fate_gym.trainers.study.hypotheses import METRICS, Hypothesis, Judgement, Values, judge
from fate_gym.trainers.study.plan import Replicate
from fate_gym.trainers.study.records import Report, Result, Row
from fate_gym.trainers.study.scoring import volume
from fate_gym.trainers.study.statistics import Mean, mean_share, paired

SCHEMA: Final = "fate-gym/study-report/1"

COMPARED: Final = ("ASR", "TSR", "earned_utility", "BRR", "hypervolume")
"""The metrics of paired differences."""

_COSTS: Final = ("tokens", "unspent", "learner_tokens", "rollouts", "candidates", "seconds")
_DIGITS: Final = 4


def report_of(results: Sequence[Result], hypotheses: Sequence[Hypothesis] = ()) -> Report:
    """Makes the report from the results of a study's trainings, complete or not.

    Args:
        results: The results.
        hypotheses: What was expected of the study.

    Returns:
        `replicates` (by arm, the names of those that are done), `scores` (test set -> arm -> metric -> mean over
        replicates with interval, and each replicate's value), `differences` (test set -> arm -> metric -> the first arm
        minus this one, with interval and p), `hypotheses` (each statement on which results bear, with what they say of
        it), `costs` (arm -> means), `repairs` (how well the base policies repair themselves), and `covered` (test set
        -> the tasks that all replicates together scored).
    """
    by_arm: dict[str, dict[str, Result]] = {arm: {} for arm in (BASE, *ARMS)}
    for result in results:
        by_arm[result["arm"]][Replicate(**result["replicate"]).name] = result
    done = {arm: entries for arm, entries in by_arm.items() if entries}
    trained = [arm for arm in done if arm != BASE]
    values = {arm: _values(entries) for arm, entries in done.items()}
    tests = list(dict.fromkeys(test for arm in values.values() for test in arm))
    reference = trained[0] if trained else None
    return {
        "schema": SCHEMA,
        "study": results[0]["study"],
        "overrides": results[0]["overrides"],
        "reference": reference,
        "replicates": {arm: sorted(entries) for arm, entries in done.items()},
        "scores": {test: {arm: _means(of[test]) for arm, of in values.items() if test in of} for test in tests},
        "differences": {
            test: {
                arm: _differences(values[reference].get(test, {}), of.get(test, {}))
                for arm, of in values.items()
                if arm != reference
            }
            for test in tests
            if reference
        },
        "hypotheses": [_judged(one, found) for one in hypotheses if (found := judge(one, values))],
        "costs": {arm: _costs(done[arm].values()) for arm in trained},
        "repairs": _repairs(done),
        "covered": _covered(done.get(BASE, {})),
    }


def _values(entries: Mapping[str, Result]) -> Values:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for replicate, result in entries.items():
        for test, row in result["scores"].items():
            for name in METRICS:
                value = _volume(row, result["scores"]) if name == "hypervolume" else row.get(name, {}).get("value")
                if value is not None:
                    table.setdefault(test, {}).setdefault(name, {})[replicate] = value
    return table


def _volume(row: Row, rows: Mapping[str, Row]) -> float | None:
    """Returns the hypervolume of (1 - ASR, TSR, 1 - BRR), with the refusals of the set of benign tasks."""
    if "ASR" not in row:
        return None
    benign = {"BRR": rows["benign"]["BRR"]} if "BRR" in rows.get("benign", {}) else {}
    return round(volume(benign | row), _DIGITS)


def _means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {name: {**_plain(mean_share(list(of.values()))), "values": dict(of)} for name, of in metrics.items()}


def _differences(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    found = {name: paired(first[name], second[name]) for name in COMPARED if name in first and name in second}
    return {name: {**_plain(one.difference), "p": one.p} for name, one in found.items() if one}


def _judged(hypothesis: Hypothesis, judgement: Judgement) -> dict[str, Any]:
    return {
        "name": hypothesis.name,
        "statement": str(hypothesis),
        "expected": hypothesis.expected,
        "found": judgement.found,
        "margin": _plain(judgement.margin),
    }


def _costs(entries: Iterable[Result]) -> dict[str, float]:
    budgets = [result["budget"] for result in entries]
    known = {name: [budget[name] for budget in budgets if name in budget] for name in _COSTS}
    return {name: round(sum(of) / len(of), 1) for name, of in known.items() if of}


def _repairs(done: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
    """Returns mode -> the share of the base policies' repair candidates that pass, over the replicates of FATE."""
    shares: dict[str, list[float]] = {}
    for result in done.get("fate", {}).values():
        for mode, counts in (result["repairs_in_round_1"] or {}).items():
            if counts["acceptance"] is not None:
                shares.setdefault(mode, []).append(counts["acceptance"])
    return {mode: _plain(mean_share(of)) for mode, of in shares.items()}


def _covered(bases: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    tasks: dict[str, set[str]] = {}
    for result in bases.values():
        for test, ids in result["tasks"].items():
            tasks.setdefault(test, set()).update(ids)
    return {
        test: {
            "tasks": len(ids),
            "user_tasks": sorted({"/".join(task.split("/")[:2]) for task in ids}),
            "injection_tasks": sorted(
                {f"{task.split('/')[0]}/{task.split('/')[2]}" for task in ids if not task.endswith("/none")}
            ),
        }
        for test, ids in tasks.items()
    }


def _plain(one: Mean) -> dict[str, float | int | None]:
    return {
        name: round(value, _DIGITS) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(one).items()
    }
