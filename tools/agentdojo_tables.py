"""Writes the tables that ship with the AgentDojo benchmark, or checks with `--check` that they are current.

`candidates.json` says which injection vectors each ground truth shows: each distinct table once, and for each version
and suite the number of its table. `split_v1.json` and `split_v2.json` label every pair; version 2 does so in five folds
(`fate_gym.benchmarks.agentdojo.splits` says what labels and folds mean). Splits are drawn by a hash of the ids, so they
depend on no random generator; tasks whose graders are in doubt are not held out. A changed split gets a new version,
since results on it are other results.
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
from fate_gym.benchmarks.agentdojo.grader_notes import notes, verified
from fate_gym.benchmarks.agentdojo.splits import Label
from fate_gym.benchmarks.agentdojo.upstream import suites, versions

_FOLDER: Final = Path(__file__).parents[1] / "fate_gym" / "benchmarks" / "agentdojo"
_HELD_OUT_SUITE: Final = "travel"
_FOLDED_SUITES: Final = ("banking", "slack")
_USER_SHARE: Final = 5  # one sound user task in so many is never attacked in training
_INJECTION_SHARE: Final = 4  # one sound injection task in so many is never in training
_PAIR_PERCENT: Final = 15  # of the pairs whose tasks are both known
_DEV_PERCENT: Final = 10


def tables() -> dict[Path, str]:
    """Returns what each file must hold."""
    return {
        _FOLDER / candidates.FILE_NAME: candidate_tables(),
        _FOLDER / splits.FILE_NAMES[1]: split_table(),
        _FOLDER / splits.FILE_NAMES[2]: fold_table(),
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
    """Labels every pair of v1.2.2 (version 1 of the split)."""
    return _rendered({"schema": "fate-gym/agentdojo-split/1", "version": 1, "pairs": _by_label(label_pairs(_tasks()))})


def fold_table() -> str:
    """Labels every pair of v1.2.2 in each fold (version 2 of the split)."""
    tasks = _tasks()
    alike = {pair: label for pair, label in label_pairs(tasks).items() if pair.split("/")[0] not in _FOLDED_SUITES}
    folded = {suite: tasks[suite] for suite in _FOLDED_SUITES}
    doubtful = [f"{suite}/{task}" for suite, ids in tasks.items() for task in (*ids[0], *ids[1])]
    return _rendered(
        {
            "schema": "fate-gym/agentdojo-split/2",
            "version": 2,
            "never_held_out": [task for task in doubtful if not verified(*task.split("/"))],
            "all_folds": _by_label(alike),
            "folds": [_by_label(labels) for labels in fold_pairs(folded)],
        }
    )


def _tasks() -> dict[str, tuple[list[str], list[str]]]:
    """Suite -> (user tasks, injection tasks)."""
    return {name: (list(suite.user_tasks), list(suite.injection_tasks)) for name, suite in suites("v1.2.2").items()}


def _by_label(labels: Mapping[str, Label]) -> dict[str, list[str]]:
    return {label: [pair for pair, given in labels.items() if given == label] for label in get_args(Label)}


def _rendered(data: Mapping[str, object]) -> str:
    return json.dumps(data, indent=0) + "\n"


def label_pairs(suites: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Label]:
    """Labels pairs by version 1.

    Args:
        suites: Suite -> (user tasks, injection tasks).
    """
    labels: dict[str, Label] = {}
    for suite, (users, injections) in suites.items():
        sound_users = [task for task in users if verified(suite, task)]
        sound_injections = [task for task in injections if verified(suite, task)]
        held_users = set(_ranked(1, suite, sound_users)[: len(sound_users) // _USER_SHARE])
        held_injections = set(_ranked(1, suite, sound_injections)[: len(sound_injections) // _INJECTION_SHARE])
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
        for rank, pair in enumerate(_ranked(1, suite, known)):
            labels[pair] = "pair" if rank < n_pair else "dev" if rank < n_pair + n_dev else "train"
    return labels


def fold_pairs(suites: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> list[dict[str, Label]]:
    """Labels pairs by version 2, fold by fold.

    Args:
        suites: Suite -> (user tasks, injection tasks).
    """
    held_users = _dealt({suite: users for suite, (users, _) in suites.items()})
    held_injections = _dealt({suite: injections for suite, (_, injections) in suites.items()})
    folds: list[dict[str, Label]] = [{} for _ in range(splits.FOLDS)]
    for suite, (users, injections) in suites.items():
        # Doing nothing does an idle task. FATE leaves such users out, so that their pairs would be no test of `pair`.
        idle = {user for user in users if "noop_passes" in notes(suite, user)}
        barred = {
            (user, injection): {held_users.get((suite, user)), held_injections.get((suite, injection))}
            for user in users
            for injection in injections
        }
        pair_folds = _spread(suite, {pair: folds for pair, folds in barred.items() if pair[0] not in idle})
        for fold, labels in enumerate(folds):
            known = []
            for user, injection in barred:
                pair = f"{suite}/{user}/{injection}"
                labels[pair] = "train"
                if held_injections.get((suite, injection)) == fold:
                    labels[pair] = "inj"
                elif held_users.get((suite, user)) == fold:
                    labels[pair] = "user"
                elif user in idle:
                    continue
                elif pair_folds[user, injection] == fold:
                    labels[pair] = "pair"
                else:
                    known.append(pair)
            n_dev = (len(known) + sum(folds == fold for folds in pair_folds.values())) * _DEV_PERCENT // 100
            labels.update(dict.fromkeys(_ranked(2, f"{suite} {fold}", known)[:n_dev], "dev"))
    return folds


def _dealt(tasks: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """Returns (suite, task) -> the fold that holds it out, for every sound task: dealt out like cards.

    The next suite goes on where the one before it ended, so that the folds of both together differ by one task at most.
    """
    dealt: dict[tuple[str, str], int] = {}
    for suite, ids in tasks.items():
        for task in _ranked(2, suite, [task for task in ids if verified(suite, task)]):
            dealt[suite, task] = len(dealt) % splits.FOLDS
    return dealt


def _spread(suite: str, barred: Mapping[tuple[str, str], set[int | None]]) -> dict[tuple[str, str], int]:
    """Returns the fold in which each pair is `pair`: none that is barred, and all folds as large as each other.

    Each pair goes into the smallest fold that is open to it; among several, into the one with the fewest pairs of its
    user task, then of its injection task. Pairs with the fewest open folds come first.
    """
    chosen: dict[tuple[str, str], int] = {}
    order = _ranked(2, suite, ["/".join(pair) for pair in barred])
    for user, injection in sorted((tuple(pair.split("/")) for pair in order), key=lambda pair: -len(barred[pair])):
        sizes = {
            fold: (
                sum(taken == fold for taken in chosen.values()),
                sum(taken == fold and of == user for (of, _), taken in chosen.items()),
                sum(taken == fold and of == injection for (_, of), taken in chosen.items()),
            )
            for fold in range(splits.FOLDS)
            if fold not in barred[user, injection]
        }
        chosen[user, injection] = min(sizes, key=lambda fold: (sizes[fold], fold))
    return chosen


def _ranked(version: int, suite: str, ids: Iterable[str]) -> list[str]:
    salt = f"fate-gym split {version} {suite}"
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
