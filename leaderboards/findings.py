"""What the verification of a run found out, and how it is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fate_gym.leaderboards.replay import ABSENT, Change

SCHEMA: Final = "fate-gym/verification/1"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a report.

    Attributes:
        where: File and line, an episode's key, or a setting.
        what: What is wrong there.
    """

    where: str
    what: str


@dataclass
class Verification:
    """What `verify` found out.

    Attributes:
        run: The folder.
        differences: What does not agree; none for an honest, complete run.
        notes: What a reader should know, and is no fault.
        replayed: Episodes that were played again.
        not_rescored: Axes that a judge scored and that were not judged again -> number of episodes.
        unknown: What remains the submitter's word.
    """

    run: Path
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replayed: int = 0
    not_rescored: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that can be checked agrees."""
        return not self.differences

    def add(self, where: str, what: str) -> None:
        """Adds a difference."""
        self.differences.append(Difference(where, what))

    def add_changes(self, where: str, changed: Iterable[Change], most: int | None = None) -> None:
        """Adds differing values, a line each; beyond `most` only their number."""
        listed = list(changed)
        for name, stored, fresh in listed[:most]:
            self.add(where, f"{name}: stored {brief(stored)}, recomputed {brief(fresh)}")
        if most is not None and len(listed) > most:
            self.add(where, f"and {len(listed) - most} more values")

    def to_json(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "differences": [{"where": entry.where, "what": entry.what} for entry in self.differences],
            "notes": list(self.notes),
            "replayed": self.replayed,
            "not_rescored": dict(sorted(self.not_rescored.items())),
            "cannot_know": list(self.unknown),
        }


def brief(value: object) -> str:
    """Returns a value on one line, cut where it is long."""
    if value is ABSENT:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}... ({len(text)} characters)"
