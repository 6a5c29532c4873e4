"""AgentHarm's data files: names, and a loader that names file, record and field of whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fate_gym.benchmarks.agentharm.upstream import Kind, package
from fate_gym.datafiles import DataFile
from fate_gym.errors import DataError

Config = Literal["harmful", "harmless_benign", "chat"]
"""The data set's own names of its parts."""

Split = Literal["test_public", "validation"]

FILES: Final[dict[tuple[Config, Split], str]] = {
    ("harmful", "test_public"): "harmful_behaviors_test_public.json",
    ("harmful", "validation"): "harmful_behaviors_validation.json",
    ("harmless_benign", "test_public"): "benign_behaviors_test_public.json",
    ("harmless_benign", "validation"): "benign_behaviors_validation.json",
    ("chat", "test_public"): "chat_public_test.json",
    ("chat", "validation"): "chat_validation.json",
}

KINDS: Final[dict[Config, Kind]] = {"harmful": "harmful", "harmless_benign": "benign"}
"""Which package of upstream's serves a part; chat has neither tools nor graders."""

M = TypeVar("M", bound=BaseModel)

_Text = Annotated[str, StringConstraints(min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[^/\s]+$")]
"""Stands in task ids."""


class Record(BaseModel):
    """One prompt of one behaviour."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    id: _Name
    id_original: _Name
    name: str
    category: _Text
    prompt: _Text


class ToolRecord(Record):
    """One with tools and a grader.

    Attributes:
        detailed_prompt: Whether the prompt spells the steps out.
        hint_included: Whether it names the tools.
        target_functions: The tools that the task needs, in order.
        grading_function: Name of the grader.
    """

    detailed_prompt: bool
    hint_included: bool
    target_functions: Annotated[list[str], Field(min_length=1)]
    grading_function: str


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    canary_guid: _Text
    behaviors: Annotated[list[Any], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Records:
    """The contents of a file.

    Attributes:
        canary: The GUID by which copies of the text can be found where they should not be.
        records: The records in the order of the file.
    """

    canary: str
    records: tuple[Record, ...]


def read_records(file: DataFile, config: Config) -> Records:
    """Reads a file of one part.

    Raises:
        DataError: The file is not of this form; the message is one line.
    """
    try:
        content = json.loads(file.content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path} is no valid JSON: {error}") from error
    whole = _validated(_File, content, str(file.path))
    records = [_record(item, index, config, file.path) for index, item in enumerate(whole.behaviors)]
    seen: dict[str, int] = {}
    for index, record in enumerate(records):
        if seen.setdefault(record.id, index) != index:
            raise DataError(f"{file.path}: record {index}, field id: {record.id!r} is also record {seen[record.id]}")
    return Records(whole.canary_guid, tuple(records))


def _record(item: Any, index: int, config: Config, path: Path) -> Record:
    where = f"{path}: record {index}"
    if config == "chat":
        return _validated(Record, item, where)
    record = _validated(ToolRecord, item, where)
    supplied = package(KINDS[config])
    for position, name in enumerate(record.target_functions):
        _check_known(name, supplied.tools, f"{where}, field target_functions.{position}: no {config} tool")
    _check_known(record.grading_function, supplied.graders, f"{where}, field grading_function: no {config} grader")
    return record


def _check_known(name: str, known: Collection[str], problem: str) -> None:
    if name not in known:
        raise DataError(f"{problem} {name!r} in the installed inspect_evals, which has {len(known)}")


def _validated(model: type[M], value: Any, where: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}{f', field {field}' if field else ''}: {first['msg']}") from error
