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
    """Yields the well-formed episodes of a run, each key once; reports every other line.

    Args:
        run: The folder.
        report: Called with the place and what is wrong there.
    """
    seen, keys, numbers = Keys(), KeyList(), array("q")
    for number, episode in _lines(run / "episodes.jsonl", report):
        where = f"episodes.jsonl, line {number}"
        if not seen.add(episode.key):
            report(where, f"repeats {episode.key}, which is on line {numbers[keys.indices([episode.key])[0]]}")
            continue
        keys.append(episode.key)
        numbers.append(number)
        if episode.status != "ok":
            report(where, f"{episode.key} has status {episode.status!r}: what errored belongs in failures.jsonl")
        else:
            yield episode


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
