"""The splits of AgentDojo's pairs, one label each: what training may see, and what a result is worth.

| label  | the pair's user task  | its injection task    | use |
|--------|-----------------------|-----------------------|-----|
| train  | attacked in training  | in training           | training |
| dev    | attacked in training  | in training           | choosing among checkpoints |
| pair   | attacked in training  | in training           | test: both known, not together |
| user   | never attacked in training | in training      | test |
| inj    | any                   | never in training     | test |
| unseen | of a suite held out whole | likewise          | test |

Version 1 is one split. Version 2 has five folds of banking and slack, so that a study can test every task: over the
folds, each sound injection task is `inj` once, each sound user task `user` once, and each pair of a user task that
doing nothing does not pass is `pair` once. Travel is held out whole in both versions, and workspace has one split for
all folds. A task is sound if no note on its graders speaks against it (`grader_notes`).

`tools/agentdojo_tables.py` in the repository draws the splits and writes the files.
"""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from typing import Any, Final, Literal, get_args

Label = Literal["train", "dev", "pair", "user", "inj", "unseen"]
Split = Literal["train", "dev", "test"]

LABELS_OF: Final[dict[Split, tuple[Label, ...]]] = {
    "train": ("train",),
    "dev": ("dev",),
    "test": ("pair", "user", "inj", "unseen"),
}
FOLDS: Final = 5
"""Number of folds of version 2."""

FILE_NAMES: Final = {1: "split_v1.json", 2: "split_v2.json"}
"""The file of each version; a changed split is a new version, since results on it are other results."""


@cache
def labels(fold: int | None = None) -> dict[str, Label]:
    """Returns "SUITE/USER_TASK/INJECTION_TASK" -> label for every pair of AgentDojo v1.2.2.

    Earlier versions of AgentDojo hold a part of these pairs.

    Args:
        fold: A fold of version 2, from 0; None for version 1.

    Raises:
        ValueError: There is no such fold.
    """
    check_fold(fold)
    if fold is None:
        return _by_pair(_read(1)["pairs"])
    data = _read(2)
    return _by_pair(data["all_folds"]) | _by_pair(data["folds"][fold])


def version(fold: int | None) -> int:
    """Returns the version of the split that a fold belongs to."""
    return 1 if fold is None else 2


def check_fold(fold: int | None) -> None:
    """Raises a ValueError if there is no such fold."""
    # True and 1.0 would pass for 1, and one split would have two names in the records of runs.
    if fold is not None and (type(fold) is not int or not 0 <= fold < FOLDS):
        raise ValueError(f"no fold {fold!r}; there are: {', '.join(map(str, range(FOLDS)))}, or none for version 1")


def split_labels(split: str) -> tuple[Label, ...]:
    """Returns the labels that a split takes: "train", "dev", "test", or one label by itself.

    Raises:
        ValueError: There is no such split.
    """
    label: Label
    for label in get_args(Label):
        if split == label:
            return (label,)
    for name, taken in LABELS_OF.items():
        if split == name:
            return taken
    raise ValueError(f"unknown split {split!r}; there are: {', '.join(dict.fromkeys([*LABELS_OF, *get_args(Label)]))}")


def _by_pair(pairs: dict[Label, list[str]]) -> dict[str, Label]:
    return {pair: label for label, members in pairs.items() for pair in members}


def _read(version: int) -> dict[str, Any]:
    text = importlib.resources.files(__package__).joinpath(FILE_NAMES[version]).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
