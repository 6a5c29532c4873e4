"""Stage files: what one stage of training hands to the next, whole after a kill at any byte.

A stage file is JSONL. Its first line is a header: schema, the inputs that it follows from, their digest, and counts;
the other lines are records in the stage's own order, so that equal inputs give equal bytes. While a stage runs, its
records are appended to `NAME.part` and fsynced one by one; the finished file replaces that atomically. Whoever runs
the stage again finds the records there, and pays for no rollout twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError, RunError, RunMismatchError
from fate_gym.storage import AppendLog, digest, encode_line, make_folder, records, replace_file

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage file.

    Attributes:
        header: Its first line: `schema`, `inputs`, `digest`, `counts`.
        records: The others.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]


def read_stage(path: Path, schema: str) -> Stage:
    """Reads a finished stage file.

    Raises:
        RunError: There is none.
        RunCorruptError: It is damaged, or of another schema.
    """
    if not path.exists():
        raise RunError(f"there is no {path}: run the stage that writes it first")
    lines = [record for _, record in records(path)]
    if not lines or lines[0].get("schema") != schema:
        raise RunCorruptError(f"{path} does not begin with a header of schema {schema}: delete it and run again")
    header, rest = lines[0], lines[1:]
    if header.get("counts", {}).get("records") != len(rest):
        raise RunCorruptError(f"{path} holds {len(rest)} records, its header says otherwise: delete it and run again")
    return Stage(header, rest)


def write_stage(
    path: Path,
    schema: str,
    lines: Iterable[Record],
    *,
    inputs: Mapping[str, Json],
    counts: Mapping[str, Json] | None = None,
) -> Stage:
    """Writes a finished stage file; its name stands for the old content or the new, never a part.

    Args:
        path: The file.
        schema: Names the kind and version of its records.
        lines: The records.
        inputs: What they follow from: settings, and digests of the files read.
        counts: Further counts for the header, beside `records`.
    """
    found = [dict(record) for record in lines]
    header = {
        "schema": schema,
        "inputs": dict(inputs),
        "digest": digest(inputs),
        "counts": {"records": len(found), **(counts or {})},
    }
    make_folder(path.parent)
    replace_file(path, b"".join(map(encode_line, (header, *found))))
    return Stage(header, found)


class StageFile:
    """A stage that runs, or has run: its records so far, and where the next ones go.

    Use it as a context manager; `append` records as they come, then `finish`.

    Args:
        path: The finished file's; the unfinished one stands beside it.
        schema: Names the kind and version of its records.
        inputs: What they follow from: settings, and digests of the files read.

    Attributes:
        finished: The stage's result, None while it runs.
        done: Key -> record, of what is there already.

    Raises:
        RunMismatchError: The records there follow from other inputs.
    """

    def __init__(self, path: Path, schema: str, inputs: Mapping[str, Json]) -> None:
        self.path = path
        self._schema, self._inputs = schema, dict(inputs)
        self._part = path.with_name(f"{path.name}.part")
        self._log: AppendLog | None = None
        self.finished: Stage | None = None
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.finished = read_stage(path, schema)
            self._check(path, self.finished.header)
            self.done = {record["key"]: record for record in self.finished.records if "key" in record}

    def __enter__(self) -> StageFile:
        if self.finished is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._log = AppendLog(self._part)
            lines = [record for _, record in records(self._part)]
            if lines:
                self._check(self._part, lines[0])
            else:
                header = {"schema": self._schema, "inputs": self._inputs, "digest": digest(self._inputs)}
                self._log.append(encode_line(header))
            self.done = {record["key"]: record for record in lines[1:]}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def append(self, record: Record) -> None:
        """Adds a record; when this returns, it survives a loss of power.

        Raises:
            OSError: The disk refused; the file is as it was before.
            RunError: The stage is not open.
        """
        if self._log is None:
            raise RunError(f"{self.path} is not open for writing")
        self._log.append(encode_line(record))
        self.done[record["key"]] = dict(record)

    def finish(self, keys: Sequence[str], counts: Mapping[str, Json] | None = None) -> Stage:
        """Writes the finished file from the records under these keys, in this order; keys without one are left out."""
        found = [self.done[key] for key in keys if key in self.done]
        self.finished = write_stage(self.path, self._schema, found, inputs=self._inputs, counts=counts)
        self._part.unlink(missing_ok=True)
        return self.finished

    def _check(self, path: Path, header: Record) -> None:
        if header.get("schema") == self._schema and header.get("digest") == digest(self._inputs):
            return
        stored = header.get("inputs", {})
        names = {*stored, *self._inputs}
        changed = ", ".join(sorted(name for name in names if stored.get(name) != self._inputs.get(name)))
        raise RunMismatchError(
            f"{path} was made from other inputs ({changed or 'its schema'}): "
            "give the same settings to go on, or another --out"
        )
