"""Writes the two tables that ship with the AgentDojo benchmark, or checks with `--check` that they are current.

`candidates.json` says which injection vectors each ground truth shows: each distinct table once, and for each version
and suite the number of its table. `split_v1.json` labels every pair (`fate_gym.benchmarks.agentdojo.splits` says what
the labels mean). The split is drawn by a hash of the ids, so it depends on no random generator; tasks whose graders are
in doubt are not held out. A changed split gets a new version, since results on it are other results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

from fate_gym.benchmarks.agentdojo import candidates, splits
from fate_gym.benchmarks.agentdojo.grader_notes import verified
from fate_gym.benchmarks.agentdojo.splits import Label
from fate_gym.benchmarks.agentdojo.upstream import suites, versions

_FOLDER: Final = Path(__file__).parents[1] / "fate_gym" / "benchmarks" / "agentdojo"
_HELD_OUT_SUITE: Final = "travel"
_USER_SHARE: Final = 5  # one sound user task in so many is never attacked in training
_INJECTION_SHARE: Final = 4  # one sound injection task in so many is never in training
_PAIR_PERCENT: Final = 15  # of the pairs whose tasks are both known
_DEV_PERCENT: Final = 10


def tables() -> dict[Path, str]:
    """Returns what each file must hold."""
    return {
        _FOLDER / candidates.FILE_NAME: candidate_tables(),
        _FOLDER / splits.FILE_NAME: split_table(),
    }


def candidate_tables() -> str:
    """Runs every ground truth of every version, and renders which vectors it shows."""
    tables: list[Mapping[str, tuple[str, ...]]] = []
    numbers: dict[str, dict[str, int]] = {}
    for version in versions():
        numbers[version] = {}
        for name, suite in suites(version).items():
            table = candidates.computed(suite)
            if table not in tables:
                tables.append(table)
            numbers[version][name] = tables.index(table)
    lines = ",\n".join(json.dumps(table, separators=(",", ":")) for table in tables)
    return f'{{"versions": {json.dumps(numbers)},\n"tables": [\n{lines}\n]}}\n'


def split_table() -> str:
    """Labels every pair of v1.2.2."""
    tasks = {name: (list(suite.user_tasks), list(suite.injection_tasks)) for name, suite in suites("v1.2.2").items()}
    labels = label_pairs(tasks)
    pairs = {label: [pair for pair, given in labels.items() if given == label] for label in get_args(Label)}
    data = {"schema": "fate-gym/agentdojo-split/1", "version": splits.VERSION, "pairs": pairs}
    return json.dumps(data, indent=0) + "\n"


def label_pairs(suites: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Label]:
    """Labels pairs.

    Args:
        suites: Suite -> (user tasks, injection tasks).
    """
    labels: dict[str, Label] = {}
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
                    labels[pair] = "unseen"
                elif injection in held_injections:
                    labels[pair] = "inj"
                elif user in held_users:
                    labels[pair] = "user"
                else:
                    known.append(pair)
        n_pair, n_dev = len(known) * _PAIR_PERCENT // 100, len(known) * _DEV_PERCENT // 100
        for rank, pair in enumerate(_ranked(suite, known)):
            labels[pair] = "pair" if rank < n_pair else "dev" if rank < n_pair + n_dev else "train"
    return labels


def _ranked(suite: str, ids: Iterable[str]) -> list[str]:
    salt = f"fate-gym split {splits.VERSION} {suite}"
    return sorted(ids, key=lambda task: hashlib.sha256(f"{salt} {task}".encode()).digest())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tables, or with `--check` exits with 1 if one is not current."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is not current")
    check = parser.parse_args(arguments).check
    stale = {path: text for path, text in tables().items() if not path.exists() or path.read_text("utf-8") != text}
    if check:
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
