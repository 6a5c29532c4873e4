"""Stage files: the records that one stage of training hands to the next, complete after a kill at any byte.

A stage file is JSONL. Its first line is a header: schema, the inputs that its records depend on, their digest, and
counts. The other lines are records in the stage's own order, so that equal inputs give equal bytes. While a stage runs,
each record is appended to `NAME.part` and fsynced; at the end the finished file replaces that file atomically. A stage
that is started again finds its records there, so no rollout is paid for twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.storage import (
    AppendLog,
    Fields,
    check_same_settings,
    digest,
    dump,
    encode_line,
    make_folder,
    parse,
    records,
    replace_file,
)

Record = Mapping[str, Any]

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Renames what an older schema version called otherwise in the inputs of a header."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage file.

    Attributes:
        header: The first line.
        records: The other lines.
    """

    header: Fields
    records: list[Fields]

    @property
    def counts(self) -> dict[str, Any]:
        """The counts in the header: `records`, and those of the stage itself."""
        return self.header.object("counts").values


def read_header(path: Path, schema: str) -> Fields:
    """Reads the first line of a finished stage file.

    Raises:
        RunError: The file does not exist, is damaged, or has another schema.
    """
    if not path.exists():
        raise RunError(f"there is no {path}: run the stage that writes it first")
    for line, record in records(path):
        header = Fields(record, f"{path}, line {line}")
        header.check_schema(schema)
        return header
    raise RunCorruptError(f"{path} is empty: delete it and run the stage again")


def read_stage(path: Path, schema: str) -> Stage:
    """Reads a finished stage file.

    Raises:
        RunError: The file does not exist, is damaged, or has another schema.
    """
    header = read_header(path, schema)
    entries = _read_lines(path)[1:]
    if header.object("counts").integer("records") != len(entries):
        raise RunCorruptError(f"{path} has {len(entries)} records, its header says otherwise: delete it and run again")
    return Stage(header, entries)


def write_stage(
    path: Path, schema: str, entries: Sequence[Record], *, inputs: Mapping[str, Json], counts: Mapping[str, Json]
) -> None:
    """Writes a finished stage file atomically.

    Args:
        path: The file.
        schema: Names the kind and version of its records.
        entries: The records.
        inputs: What the records depend on: settings, and digests of the files that were read.
        counts: Counts for the header, besides `records`.
    """
    header = {
        "schema": schema,
        "inputs": dict(inputs),
        "digest": digest(inputs),
        "counts": {"records": len(entries), **counts},
    }
    make_folder(path.parent)
    replace_file(path, b"".join(map(encode_line, (header, *entries))))


class StageFile:
    """The records of a stage, finished or not.

    Use it as a context manager: unless `finished`, `append` records as they come, then call `finish`.

    Args:
        path: The finished file; the unfinished one stands beside it.
        schema: Names the kind and version of its records; older versions are read too.
        inputs: What the records depend on: settings, and digests of the files that were read.
        upgrade: Gives the inputs in the header of an older version their current names.

    Attributes:
        finished: The finished file, None while the stage runs.
        done: The records so far, by their keys.

    Raises:
        RunMismatchError: The records there depend on other inputs.
        RunError: The file is damaged.
    """

    def __init__(
        self, path: Path, schema: str, inputs: Mapping[str, Json], upgrade: Upgrade = lambda inputs: inputs
    ) -> None:
        self.path = path
        self._schema, self._inputs, self._upgrade = schema, dict(inputs), upgrade
        self._part = path.with_name(f"{path.name}.part")
        self._log: AppendLog | None = None
        self.finished: Stage | None = None
        self.done: dict[str, Fields] = {}
        if path.exists():
            self.finished = read_stage(path, schema)
            self._check_inputs(self.finished.header)
            self.done = _by_key(self.finished.records)

    def __enter__(self) -> StageFile:
        if self.finished is not None:
            # A kill after the finished file was written, or a loss of power before its deletion was, leaves it there.
            self._part.unlink(missing_ok=True)
        else:
            make_folder(self.path.parent)
            self._log = AppendLog(self._part)
            lines = _read_lines(self._part)
            if lines:
                lines[0].check_schema(self._schema)
                self._check_inputs(lines[0])
            else:
                header: dict[str, Json] = {
                    "schema": self._schema,
                    "inputs": self._inputs,
                    "digest": digest(self._inputs),
                }
                self._log.append(encode_line(header))
            self.done = _by_key(lines[1:])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def header(self) -> Fields:
        """The header of the finished file; raises as `records` does."""
        return self._result().header

    @property
    def records(self) -> list[Fields]:
        """The records of the finished file.

        Raises:
            RunError: The stage is not finished.
        """
        return self._result().records

    def append(self, record: Record) -> None:
        """Adds a record. When this returns, the record survives a loss of power.

        Raises:
            DiskError: The disk refused; the file is as it was before.
            RunError: The stage is not open.
        """
        if self._log is None:
            raise RunError(f"{self.path} is not open for writing")
        line = encode_line(record)
        self._log.append(line)
        # Parsed again, so that a record is the same whether it was sampled now or before an interruption.
        self.done[record["key"]] = Fields(parse(line), str(self._part))

    def finish(self, keys: Sequence[str], counts: Mapping[str, Json]) -> Stage:
        """Writes the finished file from the records with these keys, in this order. Keys without record are skipped."""
        entries = [self.done[key].values for key in keys if key in self.done]
        write_stage(self.path, self._schema, entries, inputs=self._inputs, counts=counts)
        self._part.unlink(missing_ok=True)
        self.finished = read_stage(self.path, self._schema)
        return self.finished

    def _result(self) -> Stage:
        if self.finished is None:
            raise RunError(f"{self.path} is not finished")
        return self.finished

    def _check_inputs(self, header: Fields) -> None:
        stored = header.object("inputs").values
        if header.text("schema") != self._schema:
            stored = self._upgrade(stored)
        # Compared as JSON: what was a tuple in memory is a list on disk.
        check_same_settings(f"{self.path} holds results", stored, json.loads(dump(self._inputs)))


def _read_lines(path: Path) -> list[Fields]:
    return [Fields(record, f"{path}, line {line}") for line, record in records(path)]


def _by_key(entries: Sequence[Fields]) -> dict[str, Fields]:
    """Returns records by their keys. A key that stands twice is damage: which of the two was used cannot be known."""
    done: dict[str, Fields] = {}
    for entry in entries:
        if (key := entry.text("key")) in done:
            raise entry.problem("key", f"is {key!r}, which an earlier line has already: delete one of them")
        done[key] = entry
    return done
