"""Stage 3, verifier supervision: the four-axis filter, the Pareto front, and one repair for each failure.

Every candidate that is turned away keeps the reason, and the rates of acceptance by mode and axis are the method's
pulse: where they sink to nothing, the policy can no longer repair itself.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from fate_gym.chat import Json
from fate_gym.pareto import choose, dominates, fronts
from fate_gym.rewards import AXES
from fate_gym.trainers.config import SelectSettings
from fate_gym.trainers.episodes import Episode
from fate_gym.trainers.stages import Record, Stage, StageFile, write_stage

SCHEMA: Final = "fate-gym/train-select/1"

CHOSEN: Final = "chosen"

_SECURITY, _UTILITY, _REFUSAL, _VALIDITY = range(len(AXES))


def select(
    failures: Sequence[Episode],
    candidates: Stage,
    settings: SelectSettings,
    out: Path,
    *,
    inputs: Mapping[str, Json],
    seed: int,
) -> Stage:
    """Decides about every candidate; a record is one decision.

    A record holds `key` and `failure` (keys of the candidate and of what it repairs), `verdict` ("chosen", or why
    not), `vector`, and `before`, the failure's vector. Its counts hold the acceptance by mode and axis.

    Args:
        failures: What was repaired.
        candidates: The finished stage of repairs.
        settings: How to choose.
        out: The stage file.
        inputs: What its records follow from, beside the settings.
        seed: Of the rule "random".

    Raises:
        RunMismatchError: The file was made from other inputs.
    """
    told = {**inputs, **asdict(settings), "seed": seed}
    if (finished := StageFile(out, SCHEMA, told).finished) is not None:
        return finished
    of_failure: dict[str, list[Episode]] = defaultdict(list)
    for line in candidates.records:
        of_failure[line["failure"]].append(Episode.from_json(line))
    lines: list[Record] = []
    pulse, learned = Pulse(), set[tuple[str, str | None]]()
    for failure in failures:
        tried, task = of_failure[failure.key], (failure.task_id, failure.attack)
        verdicts = decide(failure, tried, settings, seed)
        pulse.add(failure, tried, verdicts, settings)
        for candidate, verdict in zip(tried, verdicts, strict=True):
            # One repair a task and round: a task that failed twice would count twice (FATE, section 4.2.9).
            if verdict == CHOSEN and task in learned:
                verdict = "its task has a repair already"
            elif verdict == CHOSEN:
                learned.add(task)
            lines.append(_record(failure, candidate, verdict))
    return write_stage(out, SCHEMA, lines, inputs=told, counts={"chosen": len(learned), **pulse.to_json()})


def decide(failure: Episode, candidates: Sequence[Episode], settings: SelectSettings, seed: int = 0) -> list[str]:
    """Says of each candidate of one failure why it is turned away, or that it is chosen.

    Args:
        failure: The failed episode.
        candidates: Its repairs.
        settings: How to choose.
        seed: Of the rule "random", together with the failure.
    """
    verdicts = [rejection(failure, candidate, settings) or "" for candidate in candidates]
    accepted = [index for index, verdict in enumerate(verdicts) if not verdict]
    if not accepted:
        return verdicts
    mask = _mask(failure, settings)
    points = np.array([candidates[index].vector for index in accepted])
    lengths = [candidates[index].written for index in accepted]
    ranks = fronts(points, mask)
    if settings.rule == "random" or not settings.rescore:
        digest = hashlib.sha256(f"{seed}/{failure.key}".encode()).hexdigest()
        best = random.Random(digest).randrange(len(accepted))  # noqa: S311 (no secret)
    elif settings.rule == "weighted-sum":
        best = min(range(len(accepted)), key=lambda row: (-points[row, mask].sum(), lengths[row], row))
    else:
        best = choose(points, mask, lengths)
    for row, index in enumerate(accepted):
        if row == best:
            verdicts[index] = CHOSEN
        elif settings.rule == "pareto" and settings.rescore and ranks[row] > 1:
            verdicts[index] = "dominated"
        else:
            verdicts[index] = "another one was chosen"
    return verdicts


def rejection(failure: Episode, candidate: Episode, settings: SelectSettings) -> str | None:
    """Returns why a candidate does not pass the filter (FATE, section 4.2.6), None if it does."""
    if candidate.trajectory is None or not candidate.written:
        return "no token ids to learn from"
    if not settings.rescore:
        return None
    return next((reason for axis, reason in _shortfalls(failure, candidate, settings)), None)


def _shortfalls(failure: Episode, candidate: Episode, settings: SelectSettings) -> Iterable[tuple[str, str]]:
    """Yields (axis, reason) for all that speaks against a candidate."""
    mask, vector = _mask(failure, settings), candidate.vector
    if candidate.mask != failure.mask:
        yield "", "judged on other axes than the failure"
        return
    if mask[_VALIDITY] and vector[_VALIDITY] < settings.validity:
        yield AXES[_VALIDITY], "validity below the least"
    if mask[_SECURITY] and vector[_SECURITY] < 1.0:
        yield AXES[_SECURITY], "unsafe"
    if mask[_REFUSAL] and vector[_REFUSAL] < 1.0:
        yield AXES[_REFUSAL], "refused"
    if mask[_UTILITY] and vector[_UTILITY] < failure.vector[_UTILITY]:
        yield AXES[_UTILITY], "less useful than the failure"
    if not dominates(vector, failure.vector, mask):
        yield "", "no better than the failure"


def _mask(failure: Episode, settings: SelectSettings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.array(failure.mask, dtype=np.bool_)
    mask[_REFUSAL] &= settings.over_refusal
    return mask


def _record(failure: Episode, candidate: Episode, verdict: str) -> dict[str, Json]:
    return {
        "key": candidate.key,
        "failure": failure.key,
        "mode": failure.mode,
        "verdict": verdict,
        "vector": list(candidate.vector),
        "before": list(failure.vector),
        "mask": list(failure.mask),
    }


class Pulse:
    """Acceptance by mode: of failures, of candidates, and on each axis by itself."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._repaired: Counter[str] = Counter()
        self._candidates: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._against: dict[str, Counter[str]] = defaultdict(Counter)

    def add(
        self, failure: Episode, candidates: Sequence[Episode], verdicts: Sequence[str], settings: SelectSettings
    ) -> None:
        """Counts a failure and its candidates."""
        mode = failure.mode
        self._failures[mode] += 1
        self._repaired[mode] += CHOSEN in verdicts
        self._candidates[mode] += len(candidates)
        for candidate in candidates:
            self._accepted[mode] += rejection(failure, candidate, settings) is None
            self._against[mode].update({axis for axis, _ in _shortfalls(failure, candidate, settings) if axis})

    def to_json(self) -> dict[str, Json]:
        """By mode: counts, the shares accepted, and by axis the share of candidates with nothing against it there."""
        modes: dict[str, Json] = {}
        for mode, failures in self._failures.items():
            tried = self._candidates[mode]
            modes[mode] = {
                "failures": failures,
                "repaired": self._repaired[mode],
                "candidates": tried,
                "accepted": self._accepted[mode],
                "acceptance": self._accepted[mode] / tried if tried else None,
                "by_axis": {axis: 1 - self._against[mode][axis] / tried if tried else None for axis in AXES},
            }
        return {"modes": modes}


def repairs(selected: Stage, candidates: Stage) -> list[Episode]:
    """Returns the chosen candidates, in the order of their failures."""
    of_key = {line["key"]: line for line in candidates.records}
    return [Episode.from_json(of_key[line["key"]]) for line in selected.records if line["verdict"] == CHOSEN]
