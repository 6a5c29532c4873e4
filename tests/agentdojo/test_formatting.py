"""Tool results as text, byte for byte."""

import datetime
from typing import Any

import pytest
import yaml
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str
from agentdojo.default_suites.v1.tools.types import EmailStatus
from agentdojo.functions_runtime import FunctionsRuntime
from agentdojo.strenum import StrEnum
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo import formatting, upstream
from fate_gym.benchmarks.agentdojo.formatting import format_result
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

WORDS = [
    "yes",
    "null",
    "~",
    "1",
    "0x1f",
    "1e3",
    "2024-05-15",
    "12:30:45",
    "=",
    "<<",
    "- a",
    "a: b",
    "a #b",
    "---",
    "...",
    "'",
    '"',
    "\\",
]
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=30),
    st.text(alphabet=st.sampled_from(" \n\t:#-'\"aé\x85\u2028\ufeff😀{[&*!|>%@`,"), max_size=30),
    st.lists(st.sampled_from([*WORDS, "word", "longer-words", "\n", "\n\n ", "日本"]), max_size=40).map(" ".join),
)
SHARED = datetime.datetime(2024, 5, 15, 10, 30)  # noqa: DTZ001 - AgentDojo's are naive
LEAVES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.datetimes(),
    st.datetimes(timezones=st.just(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))),
    st.dates(),
    st.sampled_from(list(EmailStatus)),
    st.just(SHARED),
    st.builds(list),
    st.builds(dict),
    st.binary(max_size=4),
    st.just(()),
)
KEYS = st.one_of(
    st.sampled_from(["name", "id_", "a@b.c", "x" * 99, "x" * 101, "x" * 130]), TEXTS, st.integers(), st.none()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


class Record(BaseModel):
    zeta: Any
    alpha: Any


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


@given(VALUES)
@example([{"a": [{"b": {"c": [1]}}], "d": {}}])
@example({"a": [[1]]})
@example([SHARED, SHARED])
@example({"k": "word " * 40, "l": ["word " * 40], "m": {"n": "é" * 90}})
@example([float("inf"), -0.0, 1e17, 1e-7])
@settings(max_examples=800)
def test_dump_equals_safe_dump(data):
    assert outcome(formatting._dump, data) == outcome(yaml.safe_dump, data)


@given(st.lists(st.one_of(st.builds(Record, zeta=VALUES, alpha=VALUES), TEXTS, st.integers()), max_size=5))
@settings(max_examples=200)
def test_lists_equal_upstream(result):
    assert outcome(format_result, result) == outcome(tool_result_to_str, result)


@given(st.one_of(st.builds(Record, zeta=VALUES, alpha=VALUES), VALUES))
@settings(max_examples=200)
def test_single_results_equal_upstream(result):
    assert outcome(format_result, result) == outcome(tool_result_to_str, result)


class Colour(StrEnum):
    red = "red: hot"


@pytest.mark.parametrize("item", [1.5, True, {"a": 1}, None, [1], Colour.red])
def test_lists_of_other_things_raise_as_upstream(item):
    with pytest.raises(TypeError) as upstream_error:
        tool_result_to_str([item])
    with pytest.raises(TypeError) as error:
        format_result([item])
    assert str(error.value) == str(upstream_error.value)


def test_an_object_that_comes_twice_is_an_alias():
    result = [Record(zeta=SHARED, alpha=SHARED)]
    assert "&id001" in format_result(result)
    assert format_result(result) == tool_result_to_str(result)


def ground_truth_results(name):
    suite = upstream.suites("v1.2.2")[name]
    made = SuiteTemplate(suite)
    runtime = FunctionsRuntime(suite.tools)
    for task in [*suite.user_tasks.values(), *suite.injection_tasks.values()]:
        environment = made.environment({}).load()
        for call in task.ground_truth(environment):
            yield runtime.run_function(environment, call.function, call.args)[0]


@pytest.mark.parametrize("name", ["workspace", "travel", "banking", "slack"])
def test_ground_truth_results_take_the_fast_path(name, monkeypatch):
    def refuse(data):
        raise AssertionError(data)

    monkeypatch.setattr(yaml, "safe_dump", refuse)  # upstream bound it when it was defined
    count = 0
    for result in ground_truth_results(name):
        if result != []:  # printed the slow way, which takes no time
            assert format_result(result) == tool_result_to_str(result)
            count += 1
    assert count > 20


def test_long_folded_texts_print_equal():
    suite = upstream.suites("v1.2.2")["workspace"]
    made = SuiteTemplate(suite)
    text = "l1\n\nl2 \\x41 é " + "text " * 50
    environment = made.environment(dict.fromkeys(made.vectors, text)).load()
    files = list(environment.cloud_drive.files.values())
    # The inbox holds every email twice, so it prints with anchors.
    for result in (files, environment.inbox.received, environment.inbox, environment.calendar.initial_events):
        assert format_result(result) == tool_result_to_str(result)
        assert "l1" in format_result(result)
    assert "&id001" in format_result(environment.inbox)
