"""Rows of both schemas, and what is said of those that are not as they should be."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import trajectories
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_gym.benchmarks.atbench.records import Table, read_rows
from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS, find_label
from fate_gym.errors import DataError, FateGymError


def read(records: Any) -> Table:
    return read_rows(Path("file.json"), json.dumps(records).encode())


def test_both_schemas_give_the_same_rows() -> None:
    new, old = read(trajectories.rows()), read(trajectories.old_schema(trajectories.rows()))
    assert new == old
    assert len(new.rows) == 8


def test_gold_labels_outside_the_taxonomy_are_masked_and_placeholders_put_back_where_only_one_label_is_meant() -> None:
    table = read(trajectories.rows())
    assert table.masked == {"risk_source": 1, "failure_mode": 2, "real_world_harm": 1}
    assert table.replaced == 1
    gold = [row.gold for row in table.rows if row.turns[0].content == "Water nothing."]
    harm = trajectories.LABELS[2]
    expected = {"risk_source": "malicious_user_instruction_or_jailbreak", "failure_mode": None, "real_world_harm": harm}
    assert gold == [expected]
    assert all(row.gold == {} for row in table.rows if not row.unsafe)


@pytest.mark.parametrize(
    ("dimension", "name", "label"),
    [
        ("real_world_harm", "Privacy & Confidentiality Harm", "privacy_and_confidentiality_harm"),
        ("real_world_harm", "Fairness, Equity, and Allocative Harm", "fairness_equity_and_allocative_harm"),
        ("real_world_harm", "Info-ecosystem & Societal Harm", "info_ecosystem_and_societal_harm"),
        ("failure_mode", "Generation of Harmful/Offensive Content", "generation_of_harmful_offensive_content"),
        ("failure_mode", "Insecure Execution or Interaction", "insecure_interaction_or_execution"),
        ("risk_source", "memory_poisoning", None),
        ("risk_source", "financial_and_economic_harm", None),
        ("risk_source", "", None),
    ],
)
def test_display_names_mean_labels(dimension: str, name: str, label: str | None) -> None:
    assert find_label(dimension, name) == label


def test_the_taxonomy_has_its_size_and_every_label_means_itself() -> None:
    assert [len(labels) for labels in DIMENSIONS.values()] == [8, 14, 10]
    assert all(find_label(name, label) == label for name, labels in DIMENSIONS.items() for label in labels)


def test_keys_depend_on_what_is_shown_alone() -> None:
    records = trajectories.rows()
    keys = [row.key for row in read(records).rows]
    assert keys == sorted(keys)
    hidden = copy.deepcopy(records)
    for number, record in enumerate(hidden):
        record.update(id=f"other {number}", label=1 - record["label"], reason="other", extra=1)
        for tool in record["tool_used"]:
            tool.update(_source="other", _original_description="other")
    assert [row.key for row in read(hidden[::-1]).rows] == keys
    shown = copy.deepcopy(records)
    shown[0]["contents"][0][0]["content"] += "!"
    assert len(set(keys) - {row.key for row in read(shown).rows}) == 1


def test_twins_keep_apart() -> None:
    records = [trajectories.row(number, [[trajectories.user("Hello.")]], number % 2) for number in range(3)]
    table = read(records)
    first = table.rows[0].key
    assert [row.key for row in table.rows] == [first, f"{first}-2", f"{first}-3"]


def damaged(path: tuple[Any, ...], value: Any) -> list[dict[str, Any]]:
    records = copy.deepcopy(trajectories.rows()[:2])
    place: Any = records[1]
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return records


TURN = ("contents", 0, 1)


@pytest.mark.parametrize(
    ("path", "value", "field", "problem"),
    [
        (("id",), 1, "id", "another record has 1 as well"),
        (("id",), None, "id", "is missing"),
        (("id",), [1], "id", "must be a number or a string, not list"),
        (("id",), True, "id", "must be a number or a string, not bool"),
        (("label",), "1", "label", 'must be 0 or 1, not "1"'),
        (("label",), 2, "label", "must be 0 or 1, not 2"),
        (("label",), True, "label", "must be 0 or 1, not true"),
        (("tool_used",), "none", "tool_used", "must be a list, not str"),
        (("tool_used", 0), "name", "tool_used[0]", "must be an object, not str"),
        (("tool_used", 1, "name"), None, "tool_used[1].name", "is missing"),
        (("tool_used", 0, "description"), 3, "tool_used[0].description", "must be a string, not int"),
        (("contents",), None, "contents", "is missing"),
        (("contents",), [[]], "contents", "holds no turn"),
        (("contents", 0), {}, "contents[0]", "must be a list, not dict"),
        (TURN, "hello", "contents[0][1]", "must be an object, not str"),
        ((*TURN, "role"), "robot", "contents[0][1].role", 'must be one of user, agent, environment, not "robot"'),
        ((*TURN, "role"), ["agent"], "contents[0][1].role", "must be one of"),
        ((*TURN, "action"), {"name": "x"}, "contents[0][1].action", "must be a string, not dict"),
        (TURN, {"role": "agent"}, "contents[0][1]", "needs a thought or an action"),
        (TURN, {"role": "user"}, "contents[0][1].content", "is missing"),
        (("risk_source",), None, "risk_source", "is missing"),
        (("real_world_harm",), 7, "real_world_harm", "must be a string, not int"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_record_and_field(
    path: tuple[Any, ...], value: Any, field: str, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(damaged(path, value))
    message = str(caught.value)
    assert message.startswith(f"file.json, record 1, field {field}: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[{", "is no valid JSON"),
        (b"\xff\xfe\xfa", "is no valid JSON"),
        (b"[]", "at least one record"),
        (b'{"rows": []}', "must hold a JSON list"),
        (b"[[]]", "record 0: must be an object, not list"),
    ],
)
def test_a_file_that_is_none(content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_rows(Path("file.json"), content)


def test_parameters_may_not_be_nested_without_end() -> None:
    (record, *_) = trajectories.rows()
    record["tool_used"][0]["parameters"] = "DEEP"
    text = json.dumps([record]).replace('"DEEP"', '{"a":' * 700 + "1" + "}" * 700)
    with pytest.raises(DataError, match="field tool_used: parameters are nested too deeply"):
        read_rows(Path("file.json"), text.encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
_FIELDS = ["id", "tool_used", "contents", "content", "label", "conv_id", *DIMENSIONS, "more"]


@settings(max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(_FIELDS), json_values, min_size=1, max_size=2))
def test_no_change_of_a_record_is_read_wrongly_or_gives_another_error(changes: dict[str, Any]) -> None:
    records = trajectories.rows()
    records[3] = {**records[3], **changes}
    try:
        table = read(records)
    except DataError as error:
        message = str(error)
    else:
        assert len(table.rows) == 8
        return
    assert message.startswith("file.json, record ")


def test_the_folder_comes_from_the_option_or_the_environment_and_is_named_when_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trajectories.both(tmp_path)
    monkeypatch.setenv("FATE_GYM_ATBENCH_DIR", str(tmp_path))
    env: Any = gym.make("fate/ATBench-v0", config="ATBench500").unwrapped
    assert len(env.tasks) == 8
    assert all(task.startswith("ATBench500/") for task in env.tasks)
    assert "labels outside the taxonomy are left out of scores: risk_source 1, failure_mode 2" in caplog.text
    provenance = env.benchmark.provenance()
    assert provenance["masked_labels"] == {"risk_source": 1, "failure_mode": 2, "real_world_harm": 1}
    assert provenance["rows"] == {"unsafe": 5, "safe": 3}
    assert provenance["replaced_risk_sources"] == 1
    assert provenance["revision"] is None
    assert len(provenance["data_sha256"]) == 64
    with pytest.raises(DataError, match=r"nowhere.*not a folder"):
        gym.make("fate/ATBench-v0", data_dir=tmp_path / "nowhere")
    (tmp_path / "ATBench" / "test.json").unlink()
    with pytest.raises(DataError, match=r"no ATBench/test\.json"):
        gym.make("fate/ATBench-v0")


def test_options_are_checked_and_training_is_refused(tmp_path: Path) -> None:
    trajectories.both(tmp_path)
    for option, value in (("config", "ATBench-Claw"), ("view", "summary")):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            gym.make("fate/ATBench-v0", data_dir=tmp_path, **{option: value})
    with pytest.raises(FateGymError, match=r"AgentDoG1\.0-Training-Data"):
        gym.make("fate/ATBench-v0", data_dir=tmp_path, purpose="training")
