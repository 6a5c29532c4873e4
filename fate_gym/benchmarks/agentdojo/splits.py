"""The split of AgentDojo's pairs, one label each: what training may see, and what a result is worth.

| label  | the pair's user task  | its injection task    | use |
|--------|-----------------------|-----------------------|-----|
| train  | attacked in training  | in training           | training |
| dev    | attacked in training  | in training           | choosing among checkpoints |
| pair   | attacked in training  | in training           | test: both known, not together |
| user   | never attacked in training | in training      | test |
| inj    | any                   | never in training     | test |
| unseen | of a suite held out whole | likewise          | test |

`python -m fate_gym.benchmarks.agentdojo.splits` writes the file anew, `--check` tells whether it is current. Choices
go by a hash of the ids, so they depend on no random generator; tasks whose graders are in doubt are not held out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
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

_FILE: Final = Path(__file__).with_name(f"split_v{VERSION}.json")
_HELD_OUT_SUITE: Final = "travel"
_USER_SHARE: Final = 5  # one sound user task in so many is never attacked in training
_INJECTION_SHARE: Final = 4  # one sound injection task in so many is never in training
_PAIR_PERCENT: Final = 15  # of the pairs whose tasks are both known
_DEV_PERCENT: Final = 10


@cache
def labels() -> dict[str, Label]:
    """Returns "SUITE/USER_TASK/INJECTION_TASK" -> label for every pair of AgentDojo v1.2.2.

    Earlier versions hold a part of these pairs.
    """
    rows = json.loads(_FILE.read_text(encoding="utf-8"))["pairs"]
    found: dict[str, Label] = {pair: label for label, pairs in rows.items() for pair in pairs}
    return found


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


def make(suites: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Label]:
    """Labels every pair.

    Args:
        suites: Suite -> (user tasks, injection tasks).
    """
    from fate_gym.benchmarks.agentdojo.grader_notes import verified

    made: dict[str, Label] = {}
    for suite, (users, injections) in suites.items():
        sound_users = [task for task in users if verified(suite, task)]
        sound_injections = [task for task in injections if verified(suite, task)]
        held_users = set(_ranked(suite, sound_users)[: len(sound_users) // _USER_SHARE])
        held_injections = set(_ranked(suite, sound_injections)[: len(sound_injections) // _INJECTION_SHARE])
        known: list[str] = []
        for user in users:
            for injection in injections:
                pair = f"{suite}/{user}/{injection}"
                if suite == _HELD_OUT_SUITE:
                    made[pair] = "unseen"
                elif injection in held_injections:
                    made[pair] = "inj"
                elif user in held_users:
                    made[pair] = "user"
                else:
                    known.append(pair)
        n_pair, n_dev = len(known) * _PAIR_PERCENT // 100, len(known) * _DEV_PERCENT // 100
        for rank, pair in enumerate(_ranked(suite, known)):
            made[pair] = "pair" if rank < n_pair else "dev" if rank < n_pair + n_dev else "train"
    return made


def _ranked(suite: str, ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda task: hashlib.sha256(f"fate-gym split {VERSION} {suite} {task}".encode()).digest())


def _render() -> str:
    from fate_gym.benchmarks.agentdojo.upstream import suites

    tasks = {name: (list(suite.user_tasks), list(suite.injection_tasks)) for name, suite in suites("v1.2.2").items()}
    made = make(tasks)
    pairs = {label: [pair for pair, given in made.items() if given == label] for label in get_args(Label)}
    return json.dumps({"schema": "fate-gym/agentdojo-split/1", "version": VERSION, "pairs": pairs}, indent=0) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes the split file, or checks it with `--check`."""
    parser = argparse.ArgumentParser(description="Write AgentDojo's split file.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not current")
    if not parser.parse_args(arguments).check:
        _FILE.write_text(_render(), encoding="utf-8")
        return 0
    return int(_FILE.read_text(encoding="utf-8") != _render())


if __name__ == "__main__":
    sys.exit(main())
