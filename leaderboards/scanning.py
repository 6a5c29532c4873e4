"""The lines of a run's files, each looked at, the bad ones named and passed over."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from fate_gym.episode import Episode
from fate_gym.errors import RunError
from fate_gym.evaluation.keys import KeyList, Keys
from fate_gym.storage import dump, lines, parse

Report = Callable[[str, str], None]


def silent(where: str, what: str) -> None:
    """Reports nothing: for a second look at a file."""


def episodes(run: Path, report: Report = silent) -> Iterator[Episode]:
    """Yields the well-formed episodes of a run, each key once; reports every other line, those that repeat a key last.

    Args:
        run: The folder.
        report: Called with the place and what is wrong there.
    """
    seen, keys, numbers = Keys(), KeyList(), array("q")
    # All are looked up at once: a stranger's file may be made of nothing else.
    again, repeats = array("q"), KeyList()
    for number, episode in _lines(run / "episodes.jsonl", report):
        if not seen.add(episode.key):
            repeats.append(episode.key)
            again.append(number)
            continue
        keys.append(episode.key)
        numbers.append(number)
        if episode.status != "ok":
            said = f"{episode.key} has status {episode.status!r}: what errored belongs in failures.jsonl"
            report(f"episodes.jsonl, line {number}", said)
        else:
            yield episode
    for number, key, first in zip(again, repeats, keys.indices(repeats), strict=True):
        report(f"episodes.jsonl, line {number}", f"repeats {key}, which is on line {numbers[first]}")


def failures(run: Path, report: Report = silent) -> Iterator[Episode]:
    """Yields the well-formed episodes of `failures.jsonl`; reports every other line."""
    for number, episode in _lines(run / "failures.jsonl", report):
        if episode.status == "ok":
            report(f"failures.jsonl, line {number}", f"{episode.key} has status 'ok'")
        else:
            yield episode


def _lines(path: Path, report: Report) -> Iterator[tuple[int, Episode]]:
    try:
        for number, line in lines(path):
            where = f"{path.name}, line {number}"
            try:
                record = parse(line)
                # Of what is nested deeper than a run writes, no other module has to be able to make anything.
                dump(record)
            except ValueError as error:
                torn = "" if line.endswith(b"\n") else ": the file ends inside of a record, it was cut off"
                report(where, f"is not a JSON object on a line of its own ({error}){torn}")
                continue
            try:
                episode = Episode.from_json(record, where)
            except RunError as problem:
                report(where, f"is not an episode's record: {str(problem).removeprefix(where).lstrip(': ')}")
            else:
                yield number, episode
    except RunError as error:
        report(path.name, str(error))
