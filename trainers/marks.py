"""Marks of checkpoints: what a policy has learned from, which follows it wherever it goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fate_gym.agents.marks import MARK, contamination
from fate_gym.chat import Json
from fate_gym.storage import encode_line, replace_file
from fate_gym.trainers.processes import is_first_process

SCHEMA: Final = "fate-gym/train/1"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an episode's task comes from.

    Attributes:
        suite: The suite of the task.
        split: The label in the benchmark's split file, where there is one.
        contaminated_by: Benchmark data that must not be trained on, if the task is part of such data.
    """

    suite: str
    split: str | None
    contaminated_by: tuple[str, ...]

    @classmethod
    def of(cls, suite: str, metadata: Mapping[str, Any]) -> Origin:
        """Reads the origin of a task from its suite and metadata."""
        split, names = metadata.get("split"), metadata.get("contaminated_by") or ()
        several = names if isinstance(names, list | tuple) else (names,)
        return cls(suite, None if split is None else str(split), tuple(map(str, several)))


def mark(out: Path, learned: Iterable[Origin], *, earlier: str, **entries: Json) -> None:
    """Writes into the folder of a checkpoint what it has learned from, and what the policy before it had.

    Args:
        out: The checkpoint's folder.
        learned: Origins of the episodes that the update learned from.
        earlier: The policy that the update started from; its marks are carried on.
        **entries: Further entries.
    """
    if not is_first_process():
        return
    origins = set(learned)
    own = {name for origin in origins for name in origin.contaminated_by}
    content = {
        "schema": SCHEMA,
        "contaminated_by": sorted({*contamination(earlier), *own}),
        "learned_from": sorted({f"{one.suite} ({one.split or 'no split'})" for one in origins}),
        **entries,
    }
    replace_file(out / MARK, encode_line(content))
