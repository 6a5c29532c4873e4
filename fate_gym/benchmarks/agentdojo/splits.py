"""The split of AgentDojo's pairs, one label each: what training may see, and what a result is worth.

| label  | the pair's user task  | its injection task    | use |
|--------|-----------------------|-----------------------|-----|
| train  | attacked in training  | in training           | training |
| dev    | attacked in training  | in training           | choosing among checkpoints |
| pair   | attacked in training  | in training           | test: both known, not together |
| user   | never attacked in training | in training      | test |
| inj    | any                   | never in training     | test |
| unseen | of a suite held out whole | likewise          | test |

`tools/agentdojo_tables.py` in the repository draws the split and writes the file.
"""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from typing import Final, Literal, get_args

Label = Literal["train", "dev", "pair", "user", "inj", "unseen"]
Split = Literal["train", "dev", "test"]

LABELS_OF: Final[dict[Split, tuple[Label, ...]]] = {
    "train": ("train",),
    "dev": ("dev",),
    "test": ("pair", "user", "inj", "unseen"),
}
VERSION: Final = 1
"""Version of the split file; a changed split is a new version, since results on it are other results."""

FILE_NAME: Final = f"split_v{VERSION}.json"


@cache
def labels() -> dict[str, Label]:
    """Returns "SUITE/USER_TASK/INJECTION_TASK" -> label for every pair of AgentDojo v1.2.2.

    Earlier versions hold a part of these pairs.
    """
    text = importlib.resources.files(__package__).joinpath(FILE_NAME).read_text(encoding="utf-8")
    return {pair: label for label, pairs in json.loads(text)["pairs"].items() for pair in pairs}


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
