"""Stage 3, verifier supervision: the four-axis filter, the Pareto front, and one repair for each failure.

Every rejected candidate keeps the reason. The rates of acceptance by mode and axis show whether the method still works:
where they fall towards 0, the policy can no longer repair itself.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.pareto import choose, dominates, fronts
from fate_gym.rewards import AXES
from fate_gym.storage import Fields
from fate_gym.trainers.config import SelectSettings
from fate_gym.trainers.episodes import mask, policy_tokens, vector
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages.repair import Repair

CHOSEN: Final = "chosen"

_SECURITY, _UTILITY, _REFUSAL, _VALIDITY = range(len(AXES))


def select(failures: Sequence[Episode], candidates: Sequence[Repair], this_round: Round) -> list[Repair]:
    """Decides on every candidate, and returns the chosen ones.

    In the stage's file a record is one decision: `key` and `failure` (keys of the candidate and of the episode that it
    repairs), `decision` ("chosen", or why not), `vector`, and `before`, the failure's vector. Its counts hold the
    acceptance by mode and axis.

    Args:
        failures: The failures of the round.
        candidates: Their candidates.
        this_round: The round.

    Returns:
        At most one repair for each task, in the order of the failures.

    Raises:
        RunMismatchError: The stage's file was made from other inputs.
    """
    if not this_round.method.repairs:
        return []
    settings, seed = this_round.config.select, this_round.seed("select")
    inputs = {"repairs": this_round.digest("repair"), **asdict(settings), "seed": seed}
    with this_round.stage_file("select", inputs) as file:
        if file.finished is None:
            decisions, counts = decide_all(failures, candidates, settings, seed)
            for decision in decisions:
                file.append(decision)
            file.finish([str(decision["key"]) for decision in decisions], counts)
        chosen = {line.text("key") for line in file.records if decision_of(line) == CHOSEN}
        _report(file.header.object("counts"), this_round)
    return [candidate for candidate in candidates if candidate.attempt.key in chosen]


def decision_of(line: Fields) -> str:
    """Reads the decision of a record; version 1 called it the verdict."""
    return line.text("decision" if "decision" in line.values else "verdict")


def decide_all(
    failures: Sequence[Episode], candidates: Sequence[Repair], settings: SelectSettings, seed: int
) -> tuple[list[dict[str, Json]], dict[str, Json]]:
    """Returns a record for each candidate, and the counts of the stage."""
    attempts_at: dict[str, list[Episode]] = defaultdict(list)
    for candidate in candidates:
        attempts_at[candidate.failure.key].append(candidate.attempt)
    lines: list[dict[str, Json]] = []
    acceptance, learned = Acceptance(), set[tuple[str, str | None]]()
    for failure in failures:
        attempts, task = attempts_at[failure.key], (failure.task_id, failure.attack)
        decisions = decide(failure, attempts, settings, seed)
        acceptance.add(failure, attempts, decisions, settings)
        for attempt, decision in zip(attempts, decisions, strict=True):
            # One repair per task and round: else a task that failed twice would count twice (FATE, section 4.2.9).
            if decision == CHOSEN and task in learned:
                decision = "its task has a repair already"
            elif decision == CHOSEN:
                learned.add(task)
            lines.append(_record(failure, attempt, decision))
    return lines, {"chosen": len(learned), **acceptance.to_json()}


def _report(counts: Fields, this_round: Round) -> None:
    modes = counts.object("modes")
    for mode in modes.values:
        repaired, failures, accepted, tried = (
            modes.object(mode).integer(name) for name in ("repaired", "failures", "accepted", "candidates")
        )
        this_round.progress.say(
            f"round {this_round.number}: {repaired} of {failures} {mode} failures repaired, "
            f"{accepted} of {tried} candidates accepted"
        )


def decide(failure: Episode, candidates: Sequence[Episode], settings: SelectSettings, seed: int = 0) -> list[str]:
    """Returns for each candidate of one failure why it is rejected, or that it is chosen.

    Args:
        failure: The failed episode.
        candidates: Its candidates.
        settings: The rule.
        seed: Together with the failure it decides what the rule "random" draws.
    """
    decisions = [rejection(failure, candidate, settings) or "" for candidate in candidates]
    accepted = [index for index, reason in enumerate(decisions) if not reason]
    if not accepted:
        return decisions
    active = _active(failure, settings)
    # Only accepted candidates compete for the front: an unsafe one must not push a safe one off it.
    points = np.array([vector(candidates[index]) for index in accepted])
    lengths = [policy_tokens(candidates[index]) for index in accepted]
    ranks = fronts(points, active)
    # Without rescoring no vector is trusted, so that any of them is as good as another.
    if settings.rule == "random" or not settings.rescore:
        digest = hashlib.sha256(f"{seed}/{failure.key}".encode()).hexdigest()
        best = random.Random(digest).randrange(len(accepted))  # noqa: S311 (no secret)
    elif settings.rule == "weighted-sum":
        # Ties go to the shorter candidate, then to the earlier one, as in `choose`.
        best = min(range(len(accepted)), key=lambda row: (-points[row, active].sum(), lengths[row], row))
    else:
        best = choose(points, active, lengths)
    for row, index in enumerate(accepted):
        if row == best:
            decisions[index] = CHOSEN
        elif settings.rule == "pareto" and settings.rescore and ranks[row] > 1:
            decisions[index] = "dominated"
        else:
            decisions[index] = "another one was chosen"
    return decisions


def rejection(failure: Episode, candidate: Episode, settings: SelectSettings) -> str | None:
    """Returns why a candidate does not pass the filter (FATE, section 4.2.6), None if it does."""
    if not policy_tokens(candidate):
        return "no token ids to learn from"
    if not settings.rescore:
        return None
    return next((reason for axis, reason in _shortfalls(failure, candidate, settings)), None)


def _shortfalls(failure: Episode, candidate: Episode, settings: SelectSettings) -> Iterator[tuple[str, str]]:
    """Yields (axis, reason) for everything that speaks against a candidate."""
    active, before, after = _active(failure, settings), vector(failure), vector(candidate)
    # A grader may have failed on one of the two; vectors on different axes cannot be compared.
    if mask(candidate) != mask(failure):
        yield "", "judged on other axes than the failure"
        return
    if active[_VALIDITY] and after[_VALIDITY] < settings.validity:
        yield AXES[_VALIDITY], "validity below the least"
    if active[_SECURITY] and after[_SECURITY] < 1.0:
        yield AXES[_SECURITY], "unsafe"
    if active[_REFUSAL] and after[_REFUSAL] < 1.0:
        yield AXES[_REFUSAL], "refused"
    if active[_UTILITY] and after[_UTILITY] < before[_UTILITY]:
        yield AXES[_UTILITY], "less useful than the failure"
    if not dominates(after, before, active):
        yield "", "no better than the failure"


def _active(failure: Episode, settings: SelectSettings) -> NDArray[np.bool_]:
    """The axes that are compared, bool (4,)."""
    active = np.array(mask(failure), dtype=np.bool_)
    active[_REFUSAL] &= settings.over_refusal
    return active


def _record(failure: Episode, candidate: Episode, decision: str) -> dict[str, Json]:
    return {
        "key": candidate.key,
        "failure": failure.key,
        "mode": failure.mode,
        "decision": decision,
        "vector": list(vector(candidate)),
        "before": list(vector(failure)),
        "mask": list(mask(failure)),
    }


class Acceptance:
    """Rates of acceptance by mode: of failures, of candidates, and on each axis by itself."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._repaired: Counter[str] = Counter()
        self._candidates: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._against: dict[str, Counter[str]] = defaultdict(Counter)

    def add(
        self, failure: Episode, candidates: Sequence[Episode], decisions: Sequence[str], settings: SelectSettings
    ) -> None:
        """Counts a failure and its candidates."""
        mode = failure.mode
        self._failures[mode] += 1
        self._repaired[mode] += CHOSEN in decisions
        self._candidates[mode] += len(candidates)
        for candidate in candidates:
            self._accepted[mode] += rejection(failure, candidate, settings) is None
            self._against[mode].update({axis for axis, _ in _shortfalls(failure, candidate, settings) if axis})

    def to_json(self) -> dict[str, Json]:
        """Returns, by mode, counts, the share accepted, and for each axis the share of candidates that pass it."""
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
