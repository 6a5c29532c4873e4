"""`submission.yaml` is read strictly, and exactly as its JSON schema says."""

from __future__ import annotations

import datetime
import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.errors import RunError
from fate_gym.leaderboards.submissions import read_submission

GOOD: dict[str, Any] = {"schema": "fate-gym/submission/1", "who": "Ada", "model": "m, rev 1", "date": "2026-11-23"}
SCHEMA = json.loads((importlib.resources.files("fate_gym.leaderboards") / "submission.schema.json").read_text())


def write(folder: Path, fields: Any) -> Path:
    (folder / "submission.yaml").write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return folder


def test_no_file_no_submission(tmp_path: Path) -> None:
    assert read_submission(tmp_path) is None


def test_a_good_file(tmp_path: Path) -> None:
    found = read_submission(write(tmp_path, {**GOOD, "notes": "", "contaminated_by": ["AgentHarm/validation"]}))
    assert found is not None
    assert (found.who, found.date, found.contaminated_by) == ("Ada", "2026-11-23", ("AgentHarm/validation",))


def test_a_day_without_quotes_is_a_day(tmp_path: Path) -> None:
    found = read_submission(write(tmp_path, {**GOOD, "date": datetime.date(2026, 11, 23)}))
    assert found is not None
    assert found.date == "2026-11-23"


BAD: list[tuple[Any, str]] = [
    ({**GOOD, "who": ""}, "who must be a text of 1 to 200"),
    ({**GOOD, "who": 5}, "who must be a text"),
    ({**GOOD, "model": "x" * 201}, "model must be a text"),
    ({**GOOD, "notes": ["x"]}, "notes must be a text of 0 to 5000"),
    ({**GOOD, "date": "yesterday"}, "date must be a"),
    ({**GOOD, "date": "2026-13-01"}, "date must be a day"),
    ({**GOOD, "schema": "fate-gym/submission/2"}, "this fate-gym reads"),
    ({**GOOD, "score": 1.0}, "unknown field score"),
    ({**GOOD, "schema": "x" * 9999}, r"schema is 'x{199}\.\.\., this"),
    ({**GOOD, "x" * 9999: 1.0}, r"unknown field x{200}\.\.\.;"),
    ({**GOOD, "contaminated_by": "x"}, "must be a list"),
    ({**GOOD, "contaminated_by": [""]}, "must be a list of names"),
    ({**GOOD, "contaminated_by": ["x", "x"]}, "twice"),
    ({"who": "me"}, "schema, model, date missing"),
    ("- a list", "must hold a mapping"),
    ("who: a\nwho: b", "given twice"),
    ("who: [", "not valid YAML"),
    ("!!python/object/apply:os.system [x]", "not valid YAML"),
]


@pytest.mark.parametrize(("fields", "expected"), BAD)
def test_bad_files_say_where(fields: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=expected) as error:
        read_submission(write(tmp_path, fields))
    assert "submission.yaml" in str(error.value)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just("2026-02-28"), st.lists(st.text(max_size=3))
)


@given(
    st.dictionaries(st.sampled_from(["who", "model", "date", "notes", "contaminated_by", "other", "schema"]), VALUES)
)
def test_the_reader_and_the_schema_agree(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    fields = {**GOOD, **changes}
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(fields)
    folder = write(tmp_path_factory.mktemp("submission"), fields)
    if valid:
        assert read_submission(folder) is not None
    else:
        with pytest.raises(RunError):
            read_submission(folder)
