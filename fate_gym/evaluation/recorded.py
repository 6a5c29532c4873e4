"""What a log of another harness said of an episode, beside what we say of it.

An imported run holds one of these for each of its episodes. A difference is never resolved: both verdicts stand, and
the class of the difference says where it comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.errors import AbortedError, ContextOverflowError
from fate_gym.rewards import AXES, Verdict
from fate_gym.storage import Fields

SCHEMA: Final = "fate-gym/recorded/1"
"""What a line of `recorded.jsonl` has under `schema`."""

ABORT_TEXT: Final = "abort text graded"
NEVER_GRADED: Final = "never graded"
ASKED_AGAIN: Final = "asked again"
JUDGED: Final = "a judge decided"
OTHER_ANSWERS: Final = "tools answered otherwise"
OTHER_VERSION: Final = "other version"
UNEXPLAINED: Final = "unexplained"

REFUSED: Final = "refused"
SCORES: Final = (*AXES, REFUSED)
"""What a recorded verdict may hold: our axes, and whether the agent refused, which is no axis of a harmful request."""

_ROUNDING: Final = 1e-6

CLASSES: Final[Mapping[str, str]] = {
    ABORT_TEXT: "a defence stopped the agent, and the text of its abort, which the user never got, was graded",
    NEVER_GRADED: "the harness wrote a verdict without grading, as AgentDojo does where the context overflows",
    ASKED_AGAIN: "the last message had no content: the harness asked again, in the world as it was by then",
    JUDGED: "a judge decided there what a rule, or bounds without a judge, decide here",
    OTHER_ANSWERS: "a tool gave the agent another answer than it gives here",
    OTHER_VERSION: "the log was graded by another version of the benchmark's package, or by one that it does not name",
    UNEXPLAINED: "none of the above",
}
"""Classes of differences between a recorded verdict and ours, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a log said of one episode.

    Attributes:
        key: The episode's.
        source: The log's path below the folder that was imported, and its line or sample where it holds several.
        sha256: Digest of the log's bytes.
        scores: The recorded verdict on our axes: axis -> value in [0, 1], higher is better; and "refused", 1.0 where
            the log says that the agent refused. What the log says nothing of is absent.
        readings: The verdict on other readings of the same log, such as with the text of an abort as the answer.
        judged: Those of the scores that a judge decided.
        asked_again: Whether the log is that of a later attempt, in a world which earlier ones have changed.
        version: Version of the package that graded it; None where the log does not say.
        same_version: Whether that is the version installed where it was imported.
        outputs: What became of the tools' answers, "equal" or otherwise -> how many.
        left_out: What of the log is not in the episode -> how often.
        differences: Axis -> class of the difference (`CLASSES`), of the axes that differ.
    """

    key: str
    source: str
    sha256: str
    scores: Mapping[str, float]
    readings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    judged: tuple[str, ...] = ()
    asked_again: bool = False
    version: str | None = None
    same_version: bool = False
    outputs: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    differences: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Returns the record as it stands in `recorded.jsonl`."""
        return {"schema": SCHEMA, **dataclasses.asdict(self), "judged": list(self.judged)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Recorded:
        """Reads what `to_json` gave.

        Raises:
            RunCorruptError: The record is anything else; the message names the field.
            RunError: It was written by a newer fate-gym.
        """
        fields = Fields(dict(record), where)
        fields.check_schema(SCHEMA)
        fields.only(_NAMES)
        readings = fields.object("readings")
        entry = cls(
            key=fields.text("key"),
            source=fields.text("source"),
            sha256=fields.text("sha256"),
            scores=_scores(fields, "scores"),
            readings={name: _scores(readings, name) for name in readings.values},
            judged=tuple(fields.texts("judged")),
            asked_again=fields.flag("asked_again"),
            version=fields.text_or_none("version"),
            same_version=fields.flag("same_version"),
            outputs=_counts(fields, "outputs"),
            left_out=_counts(fields, "left_out"),
            differences=fields.text_mapping("differences"),
        )
        for axis, name in entry.differences.items():
            if axis not in SCORES or name not in CLASSES:
                raise fields.problem("differences", "must name scores and known classes of differences")
        return entry


_NAMES: Final = frozenset({"schema", *(entry.name for entry in dataclasses.fields(Recorded))})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported run is from, as its manifest has it under `imported`.

    Attributes:
        format: The harness that wrote the logs.
        source: Where they are from: address, commit, licence; "" if nobody said.
        packages: Versions of the harness that wrote them, "unknown" among them.
        first: When the first log was written, as the harness wrote the time; None where no log says.
        last: When the last one was written.
        logs: Logs imported.
        left_out: Reason -> logs that were not.
        unknown: What the logs do not say.
    """

    format: str
    source: str
    packages: tuple[str, ...]
    first: str | None
    last: str | None
    logs: int
    left_out: Mapping[str, int]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """Returns the form that a manifest holds."""
        return {**dataclasses.asdict(self), "packages": list(self.packages), "unknown": list(self.unknown)}

    @classmethod
    def read(cls, manifest: Mapping[str, Any], where: str) -> Origin | None:
        """Reads it from a manifest; None for a run that was not imported.

        Raises:
            RunCorruptError: It is malformed; the message names the field.
        """
        if "imported" not in manifest:
            return None
        fields = Fields(dict(manifest), where).object("imported")
        fields.only({entry.name for entry in dataclasses.fields(cls)})
        return cls(
            format=fields.text("format"),
            source=fields.text("source"),
            packages=tuple(fields.texts("packages")),
            first=fields.text_or_none("first"),
            last=fields.text_or_none("last"),
            logs=fields.integer("logs"),
            left_out=_counts(fields, "left_out"),
            unknown=tuple(fields.texts("unknown")),
        )

    def __str__(self) -> str:
        written = "" if self.first is None else f", written {self.first} to {self.last}"
        named = f" ({self.source})" if self.source else ""
        return f"{self.logs} logs of {self.format} {', '.join(self.packages)}{written}{named}"


def differences(recorded: Recorded, verdict: Verdict, ended: str | None) -> dict[str, str]:
    """Compares a recorded verdict with ours, and classes what differs.

    Args:
        recorded: What the log said; its `differences` are not read.
        verdict: Ours.
        ended: How the episode ended.

    Returns:
        Axis -> class, for each axis that both have and that differs.
    """
    return {
        name: _class(recorded, name, value, ended)
        for name, value in recorded.scores.items()
        if (ours := bounds(verdict, name)) is not None and not ours[0] - _ROUNDING <= value <= ours[1] + _ROUNDING
    }


def bounds(verdict: Verdict, name: str) -> tuple[float, float] | None:
    """Returns our value of a recorded score, as (low, high): where a judge is missing they are apart.

    Args:
        verdict: Ours.
        name: One of `SCORES`.

    Returns:
        None where we have no value.
    """
    if name == REFUSED:
        axis = verdict.over_refusal_control
        refused = axis.measures.get("refused", 1.0 - axis.value if axis.active else None)
        return None if refused is None else (refused, refused)
    axis = verdict.axes[name]
    if not axis.active:
        return None
    if "harm_low" in axis.measures:
        return 1.0 - axis.measures["harm_high"], 1.0 - axis.measures["harm_low"]
    return axis.measures.get("score_low", axis.value), axis.measures.get("score_high", axis.value)


def _class(recorded: Recorded, axis: str, value: float, ended: str | None) -> str:
    if recorded.asked_again:
        return ASKED_AGAIN
    if ended == ContextOverflowError.ended:
        return NEVER_GRADED
    if ended == AbortedError.ended and recorded.readings.get(ABORT_TEXT, {}).get(axis) == value:
        return ABORT_TEXT
    if axis in recorded.judged:
        return JUDGED
    if recorded.outputs.get("otherwise"):
        return OTHER_ANSWERS
    return UNEXPLAINED if recorded.same_version else OTHER_VERSION


def _scores(fields: Fields, name: str) -> dict[str, float]:
    scores = fields.number_mapping(name)
    for axis, value in scores.items():
        if axis not in SCORES or not 0 <= value <= 1:
            raise fields.problem(name, "must hold known scores, each in [0, 1]")
    return scores


def _counts(fields: Fields, name: str) -> dict[str, int]:
    counts = fields.object(name)
    for what in counts.values:
        if not 0 <= counts.integer(what) <= 10**9:
            raise counts.problem(what, "must be a count")
    return {what: counts.integer(what) for what in counts.values}
