"""Data files: what is read, and the one line that names file, record and field of whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import agentharm_folder
import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_gym.benchmarks.agentharm.records import FILES, read_records
from fate_gym.datafiles import AGENTHARM, DataFile, read_data
from fate_gym.errors import DataError


def read(content: bytes | dict[str, Any], config: Any = "harmful") -> Any:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_records(DataFile(Path("some.json"), data, "", verified=False), config)


@pytest.fixture
def content() -> dict[str, Any]:
    return {"canary_guid": "made up", "behaviors": agentharm_folder.behaviours("harmful", 2)}


def test_a_file_is_read_whole(content: dict[str, Any]) -> None:
    content["note"] = content["behaviors"][0]["note"] = "extra fields do no harm"
    records = read(content)
    assert records.canary == "made up"
    assert [record.id for record in records.records] == [f"{i}-{j}" for i in range(2) for j in range(1, 5)]


CHANGES: list[tuple[str, Any, str]] = [
    *[(field, None, field) for field in ("id", "id_original", "name", "category", "prompt", "detailed_prompt",
                                         "hint_included", "target_functions", "grading_function")],
    ("detailed_prompt", "yes", "detailed_prompt: Input should be a valid boolean"),
    ("detailed_prompt", 1, "detailed_prompt: Input should be a valid boolean"),
    ("prompt", 7, "prompt: Input should be a valid string"),
    ("prompt", "", "prompt: String should have at least 1 character"),
    ("id", "a/b", "id: String should match pattern"),
    ("target_functions", "send_email", "target_functions: Input should be a valid list"),
    ("target_functions", [], "target_functions: List should have at least 1 item"),
    ("target_functions", ["send_email", 3], "target_functions.1: Input should be a valid string"),
    ("target_functions", ["send_email", "juggle"], "target_functions.1: no harmful tool 'juggle'"),
    ("grading_function", "grade_juggling", "grading_function: no harmful grader 'grade_juggling'"),
    ("grading_function", "semantic_judge", "grading_function: no harmful grader"),
    ("id", "0-1", "id: '0-1' is also record 0"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), CHANGES)
def test_a_wrong_field_is_named_with_its_record_and_file(
    content: dict[str, Any], field: str, value: Any, message: str
) -> None:
    record = content["behaviors"][5]
    if value is None:
        del record[field]
    else:
        record[field] = value
    with pytest.raises(DataError) as caught:
        read(content)
    line = str(caught.value)
    assert line.startswith("some.json: record 5, field ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "some.json is no valid JSON"),
        (b'{"canary_guid": "x", "behav', "some.json is no valid JSON"),
        (b"\xff\xfe\x00", "some.json is no valid JSON"),
        (b"[" * 100_000, "some.json is no valid JSON"),
        (b"[]", "some.json: Input should be a valid dictionary"),
        (b'{"behaviors": [1]}', "some.json, field canary_guid: Field required"),
        (b'{"canary_guid": "x", "behaviors": {}}', "some.json, field behaviors: Input should be a valid list"),
        (b'{"canary_guid": "x", "behaviors": []}', "some.json, field behaviors: List should have at least 1 item"),
        (b'{"canary_guid": "x", "behaviors": ["y"]}', "some.json: record 0: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_tools_of_the_other_kind_are_unknown() -> None:
    content = {"canary_guid": "x", "behaviors": agentharm_folder.behaviours("harmful", 1)}
    content["behaviors"][0]["target_functions"] = ["create_ransomware"]
    assert read(content).records[0].target_functions == ["create_ransomware"]
    with pytest.raises(DataError, match="no harmless_benign tool 'create_ransomware'"):
        read(content, "harmless_benign")


def test_chat_records_need_less() -> None:
    records = read({"canary_guid": "x", "behaviors": agentharm_folder.behaviours("chat", 2)}, "chat")
    assert [record.id for record in records.records] == ["0-2", "1-2"]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    content = {"canary_guid": "made up", "behaviors": agentharm_folder.behaviours("harmful", 1)}
    index = data.draw(st.integers(0, 3))
    record = content["behaviors"][index]
    field = data.draw(st.sampled_from([*record, "unheard of"]))
    value = record[field] = data.draw(junk | st.sampled_from([*record.values()]))
    problem = ""
    try:
        records = read(content)
    except DataError as error:
        problem = str(error)
    if problem:
        assert problem.startswith(f"some.json: record {index}, field {field}")
        assert "\n" not in problem
    else:
        assert records.records[index].model_dump().get(field, value) == value


@settings(max_examples=100)
@given(content=junk)
def test_whatever_stands_in_a_file_is_refused_in_one_line(content: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(json.dumps(content).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["test_public", "validation"])
def test_an_unseen_file_of_full_size_runs(tmp_path: Path, split: Any) -> None:
    agentharm_folder.write(tmp_path, 44, split)
    env = gym.make("fate/AgentHarm-v0", split=split, data_dir=tmp_path)
    assert len(env.unwrapped.tasks) == 176
    for task_id in env.unwrapped.tasks[::25]:
        env.reset(seed=0, options={"task_id": task_id})
        *_, info = env.step("I'm sorry, but I can't help with that.")
        assert info["verdict"].security.value == 1.0


@pytest.mark.usefixtures("_no_folder")
def test_a_missing_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"fate-gym data fetch agentharm.*FATE_GYM_AGENTHARM_DIR"):
        gym.make("fate/AgentHarm-v0", data_dir=tmp_path)


def test_our_revision_is_the_one_that_upstream_pins() -> None:
    from inspect_evals.agentharm.utils import AGENTHARM_DATASET_REVISION

    assert AGENTHARM.revision == AGENTHARM_DATASET_REVISION
    assert set(AGENTHARM.checksums) == set(FILES.values())


def test_the_real_files_are_the_published_ones(real_folder: str) -> None:
    for (config, split), name in FILES.items():
        if split == "validation":
            file = read_data(AGENTHARM, name, real_folder)
            assert file.verified
            assert len(read_records(file, config).records) == (8 if config == "chat" else 32)
