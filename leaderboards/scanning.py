"""The lines of a run's files, each looked at, the bad ones named and passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fate_gym.episode import Episode
from fate_gym.errors import RunError
from fate_gym.storage import dump, lines, parse

Report = Callable[[str, str], None]


def silent(where: str, what: str) -> None:
    """Reports nothing: for a second look at a file."""


def episodes(run: Path, report: Report = silent) -> Iterator[dict[str, Any]]:
    """Yields the well-formed episodes of a run, each key once; reports every other line.

    Args:
        run: The folder.
        report: Called with the place and what is wrong there.
    """
    seen: dict[str, int] = {}
    for number, record in _lines(run / "episodes.jsonl", report):
        where = f"episodes.jsonl, line {number}"
        if record["key"] in seen:
            report(where, f"repeats {record['key']}, which is on line {seen[record['key']]}")
        elif record["status"] != "ok":
            report(where, f"{record['key']} has status {record['status']!r}: what errored belongs into failures.jsonl")
        else:
            yield record
        seen.setdefault(record["key"], number)


def failures(run: Path, report: Report = silent) -> Iterator[dict[str, Any]]:
    """Yields the well-formed records of `failures.jsonl`; reports every other line."""
    for number, record in _lines(run / "failures.jsonl", report):
        if record["status"] == "ok":
            report(f"failures.jsonl, line {number}", f"{record['key']} has status 'ok'")
        else:
            yield record


def _lines(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
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
                Episode.from_json(record, where)
            except RunError as problem:
                report(where, f"is no episode's record: {str(problem).removeprefix(where).lstrip(': ')}")
            else:
                yield number, record
    except RunError as error:
        report(path.name, str(error))
