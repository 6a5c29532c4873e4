"""What `verify` can know of each field of a run's files: the one table of it.

A field is named by its path in the file, such as "verdict.security.value" or "messages[3].content". An entry covers
what stands below its path as well, and the most exact entry counts. A field that no entry covers is not one that
fate-gym writes: `verify` names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fate_gym.chat import Json


class Knowledge(Enum):
    """How far a field can be checked without believing the submitter."""

    RECOMPUTED = "recomputed"
    """Derived again from the benchmark, the settings and the recorded actions, and compared."""

    REPLAYED = "replayed"
    """What the others are derived from: a change shows in every recomputed field that depends on it."""

    BOUNDED = "bounded"
    """The submitter's word, within limits that every honest run keeps."""

    UNKNOWN = "unknown"
    """The submitter's word alone."""


@dataclass(frozen=True, slots=True)
class Field:
    """An entry of the table.

    Attributes:
        knowledge: How far the field can be checked.
        doubt: What remains unknown of it, as a line of a report; "" where nothing does.
    """

    knowledge: Knowledge
    doubt: str = ""


_RECOMPUTED: Final = Field(Knowledge.RECOMPUTED)
_REPLAYED: Final = Field(Knowledge.REPLAYED)

_ACTOR: Final = Field(Knowledge.UNKNOWN, "which model wrote the actions: a name proves nothing")
_PLACE: Final = Field(Knowledge.UNKNOWN, "where and how fast the run was made: folder, machines, concurrency, budget")
_SPENT: Final = Field(Knowledge.BOUNDED, "tokens, cost, attempts and times: they are the submitter's own")
_ERROR: Final = Field(Knowledge.BOUNDED, "whether the episodes in failures.jsonl failed for the reason that they name")

MANIFEST: Final[Mapping[str, Field]] = {
    **dict.fromkeys(("schema", "digest", "data_policy", "provenance", "model_name", "versions.fate-gym"), _RECOMPUTED),
    "versions": Field(Knowledge.UNKNOWN, "which versions of other libraries the run was made with"),
    "contaminated_by": Field(Knowledge.UNKNOWN, "training on the benchmark that nobody declared"),
    "imported": Field(Knowledge.UNKNOWN, "which logs the run was imported from, and what was left out of it"),
    "privileged": Field(Knowledge.BOUNDED, "whether an agent of one's own was given the tasks' solutions"),
    **dict.fromkeys(("config.agent", "config.agent_args"), _ACTOR),
    "config.defences": Field(Knowledge.REPLAYED, "defences that neither the settings nor the records name"),
    **{f"config.{name}": _REPLAYED for name in ("env", "attack", "env_args", "tasks", "seed", "repeats", "limit")},
    **{f"config.{name}": _PLACE for name in ("concurrency", "workers", "backend", "max_cost", "out")},
}

TASK: Final = ("schema", "key", "repeat", "task_id", "mode", "suite", "cluster", "attack", "metadata", "seed")
"""Fields of an episode's record that follow from the task list alone."""

_WORLD: Final = ("ended", "truncated", "verdict", "injections", "injection_reached", "messages", "calls")

EPISODE: Final[Mapping[str, Field]] = {
    **dict.fromkeys((*TASK, *_WORLD, "status", "error"), _RECOMPUTED),
    **dict.fromkeys(("usage", "attempts", "seconds"), _SPENT),
    "shown": _RECOMPUTED,
    **dict.fromkeys(("shown.flagged", "shown.asides"), _REPLAYED),
    "actions": Field(Knowledge.REPLAYED, _ACTOR.doubt),
}
"""Fields of a line of `episodes.jsonl`. Of an axis that a judge scored, `judgements` says what can be checked."""

FAILURE: Final[Mapping[str, Field]] = {**EPISODE, "status": _ERROR, "error": _ERROR}
"""Fields of a line of `failures.jsonl`."""

RECORDED: Final[Mapping[str, Field]] = {
    **dict.fromkeys(("schema", "key", "differences"), _RECOMPUTED),
    **dict.fromkeys(
        (
            "source",
            "sha256",
            "scores",
            "judged",
            "readings",
            "asked_again",
            "version",
            "same_version",
            "outputs",
            "left_out",
        ),
        Field(Knowledge.UNKNOWN, "what the logs said: their verdicts, their versions, what their tools answered"),
    ),
}
"""Fields of a line of `recorded.jsonl`, which imported runs have."""

SUMMARY: Final[Mapping[str, Field]] = dict.fromkeys(
    ("schema", "agent", "env", "config", "digest", "episodes", "groups"), _RECOMPUTED
)

_SUBMITTER: Final = Field(Knowledge.UNKNOWN, "who made the run with which model, and when: submission.yaml says it")

SUBMISSION: Final[Mapping[str, Field]] = {
    "schema": _RECOMPUTED,
    **dict.fromkeys(("who", "model", "date", "notes"), _SUBMITTER),
    "contaminated_by": MANIFEST["contaminated_by"],
}

FILES: Final[Mapping[str, Mapping[str, Field]]] = {
    "manifest.json": MANIFEST,
    "episodes.jsonl": EPISODE,
    "failures.jsonl": FAILURE,
    "recorded.jsonl": RECORDED,
    "summary.json": SUMMARY,
    "submission.yaml": SUBMISSION,
}

ALWAYS: Final = "whether these traces are the first attempt or the best of many"
"""What no field of any file could show."""


def strange(values: Mapping[str, Json], table: Mapping[str, Field]) -> Iterator[str]:
    """Yields the fields of an object that are in no entry of a table, each by its path."""
    inner = {name.partition(".")[0] for name in table if "." in name}
    for name, value in values.items():
        if name in inner and name not in table and isinstance(value, Mapping):
            below = {path.partition(".")[2]: entry for path, entry in table.items() if path.startswith(f"{name}.")}
            yield from (f"{name}.{path}" for path in strange(value, below))
        elif name not in table:
            yield name


def doubts(table: Mapping[str, Field]) -> list[str]:
    """Returns what remains unknown of a file's fields, each line once."""
    return list(dict.fromkeys(entry.doubt for entry in table.values() if entry.doubt))
