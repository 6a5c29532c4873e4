"""`submission.yaml`: what makes a run folder a submission. `submission.schema.json` describes it for other tools."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fate_gym.errors import RunError
from fate_gym.storage import cut, read_yaml

SCHEMA: Final = "fate-gym/submission/1"
FILE: Final = "submission.yaml"

_LONGEST: Final = {"who": 200, "model": 200, "date": 10, "notes": 5000}
_REQUIRED: Final = ("schema", "who", "model", "date")
_KNOWN: Final = (*_REQUIRED, "notes", "contaminated_by")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class Submission:
    """What a submitter says of a run. Nothing of it can be checked against the run.

    Attributes:
        who: Person or group that answers for it.
        model: The model, as exactly as known.
        date: Day of the run, YYYY-MM-DD.
        notes: Anything that a reader should know.
        contaminated_by: Benchmark data that the model was trained on.
    """

    who: str
    model: str
    date: str
    notes: str = ""
    contaminated_by: tuple[str, ...] = ()


def read_submission(run: Path) -> Submission | None:
    """Reads a run folder's `submission.yaml`; None if there is none.

    Raises:
        RunError: It is not what the schema asks for; the message names the field.
    """
    path = run / FILE
    if not os.path.lexists(path):
        return None
    try:
        fields = read_yaml(path, str(path))
    except ValueError as error:
        raise RunError(str(error)) from error
    if found := _problem(fields):
        raise RunError(f"{path}: {found} (leaderboards/submission.schema.json describes the file)")
    names = {name: str(fields[name]) for name in ("who", "model", "date", "notes") if name in fields}
    return Submission(**names, contaminated_by=tuple(fields.get("contaminated_by", ())))


def _problem(fields: dict[str, Any]) -> str | None:
    missing = [name for name in _REQUIRED if name not in fields]
    unknown = sorted(str(name) for name in fields if name not in _KNOWN)
    if missing or unknown:
        what = f"{', '.join(missing)} missing" if missing else f"unknown field {cut(', '.join(unknown))}"
        return f"{what}; there are: {', '.join(_KNOWN)}"
    if fields["schema"] != SCHEMA:
        return f"schema is {cut(repr(fields['schema']))}, this fate-gym reads {SCHEMA!r}"
    for name, longest in _LONGEST.items():
        value = fields.get(name, "" if name == "notes" else None)
        # YAML reads an unquoted day as a date.
        text = value.isoformat() if type(value) is datetime.date else value
        if not isinstance(text, str) or len(text) > longest or (name in _REQUIRED and not text):
            return f"{name} must be a text of {'0' if name == 'notes' else '1'} to {longest} characters"
    if not _DATE.fullmatch(str(fields["date"])) or not _exists(str(fields["date"])):
        return f"date must be a day as YYYY-MM-DD, got {fields['date']!r}"
    marks = fields.get("contaminated_by", [])
    if not isinstance(marks, list) or not all(isinstance(mark, str) and 0 < len(mark) <= 200 for mark in marks):
        return "contaminated_by must be a list of names"
    return "contaminated_by names something twice" if len(set(marks)) != len(marks) else None


def _exists(day: str) -> bool:
    try:
        datetime.date.fromisoformat(day)
    except ValueError:
        return False
    return True
