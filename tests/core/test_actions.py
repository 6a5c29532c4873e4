from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym import actions
from fate_gym._plain import MAX_DEPTH, replace_surrogates, to_json
from fate_gym.actions import read_action
from fate_gym.chat import EMPTY_ANSWER, copy_messages
from fate_gym.transcript import turn_size


def call(name: Any = "look", arguments: Any = "{}", **extra: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **extra}


def test_a_string_is_a_final_answer() -> None:
    turn = read_action("hello", 0)
    assert (turn.text, turn.calls, turn.problem) == ("hello", (), None)
    assert turn.message == {"role": "assistant", "content": "hello"}


def test_a_call_is_normalised_and_its_id_kept() -> None:
    turn = read_action({"role": "assistant", "content": None, "tool_calls": [call(arguments='{"a": 1}', id="x1")]}, 0)
    assert turn.calls[0].arguments == {"a": 1}
    assert turn.message["tool_calls"] == [
        {"id": "x1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    ]
    assert set(turn.message) == {"role", "content", "tool_calls"}


def test_an_sdk_object_is_read_through_model_dump() -> None:
    message = SimpleNamespace(model_dump=lambda: {"role": "assistant", "content": "hi", "audio": None})
    assert read_action(message, 0).text == "hi"


def test_arguments_may_be_a_dict_or_missing() -> None:
    turn = read_action({"tool_calls": [call(arguments={"a": [1]}), call(arguments=None), call(arguments="  ")]}, 0)
    assert [c.arguments for c in turn.calls] == [{"a": [1]}, {}, {}]
    assert [c.problem for c in turn.calls] == [None, None, None]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"a": 1', "Arguments are not valid JSON: Expecting ',' delimiter at character 7."),
        ("[1]", "Arguments must be a JSON object, not a list."),
        ('"x"', "Arguments must be a JSON object, not a string."),
        ([1], "Arguments must be a JSON object, not a list."),
        ('{"a": NaN}', "Arguments are not valid JSON: NaN is not a JSON number."),
        ('{"a": 1e999}', "Arguments are not valid JSON: a number is out of range."),
        (
            '{"a": ' + "[" * 100 + "]" * 100 + "}",
            f"Arguments are not valid JSON: nested deeper than {MAX_DEPTH} levels.",
        ),
        ({"a": float("nan")}, "Arguments are not valid JSON: NaN is not a JSON number."),
        ({"a": {1, 2}}, "Arguments are not valid JSON: Expecting value at character 0."),
    ],
)
def test_unreadable_arguments_say_why_and_stay_valid_in_the_conversation(arguments: Any, problem: str) -> None:
    turn = read_action({"tool_calls": [call(arguments=arguments)]}, 0)
    assert turn.calls[0].arguments is None
    assert turn.calls[0].problem == problem
    assert turn.message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_100_000_brackets_are_refused_without_recursion() -> None:
    turn = read_action({"tool_calls": [call(arguments='{"a": ' + "[" * 100_000)]}, 0)
    assert turn.calls[0].problem is not None


def test_ids_are_unique_whatever_is_given() -> None:
    calls = [call(id="a"), call(id="a"), call(id=7), call(), call(id="bad id"), call(id="call_3_3"), call(id="")]
    turn = read_action({"tool_calls": calls}, 3, {"call_3_2"})
    ids = [c.id for c in turn.calls]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "a"
    assert "call_3_2" not in ids


@pytest.mark.parametrize(
    ("action", "attempted"),
    [
        ({}, False),
        ({"content": ""}, False),
        ({"content": " \n"}, False),
        ({"content": []}, False),
        ({"tool_calls": []}, False),
        ({"content": [{"type": "thinking", "text": "hm"}]}, False),
        ({"content": "<think>Shall I call it? I"}, False),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, False),
        (None, True),
        (3, True),
        (b"x", True),
        ([], True),
        ({"role": "user", "content": "x"}, True),
        ({"content": 4}, True),
        ({"content": "x", "tool_calls": "look()"}, True),
        ({"content": [{"type": "tool_use", "name": "look", "input": {}}]}, True),
    ],
)
def test_a_message_with_nothing_in_it_is_told_from_a_failed_attempt(action: Any, attempted: bool) -> None:
    turn = read_action(action, 0)
    assert turn.problem
    assert (turn.calls, turn.attempted) == ((), attempted)
    assert turn.message["content"] in (EMPTY_ANSWER, "x")


def test_reasoning_is_left_out_and_refusals_are_text() -> None:
    content = [
        {"type": "thinking", "content": "secret"},
        {"type": "text", "text": "a"},
        {"type": "refusal", "refusal": "b"},
    ]
    assert read_action({"content": content}, 0).text == "a\nb"
    assert read_action({"content": None, "refusal": "I won't."}, 0).text == "I won't."
    turn = read_action({"content": "<think>secret</think>\nOpen."}, 0)
    assert (turn.text, turn.message["content"]) == ("Open.", "Open.")
    assert turn.raw == {"content": "<think>secret</think>\nOpen."}


@pytest.mark.parametrize(
    "part",
    [
        "said",
        {"type": "text", "text": "said"},
        {"type": "text", "content": "said"},
        {"type": "text", "text": {"value": "said", "annotations": []}},
        {"type": "output_text", "text": "said", "annotations": []},
        {"type": "input_text", "text": "said"},
        {"text": "said"},
    ],
)
def test_text_is_read_from_every_known_shape_of_content(part: Any) -> None:
    turns = [read_action({"content": content}, 0) for content in ([part], part)]
    assert [(turn.text, turn.problem) for turn in turns] == [("said", None)] * 2


def test_parts_that_cannot_be_read_are_counted() -> None:
    content = [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {"url": "x"}}, 5]
    turn = read_action({"content": content}, 0)
    assert (turn.text, turn.attempted) == ("See:", False)
    assert turn.problem == "Its content holds parts that cannot be read: image_url, a number."
    with_calls = read_action({"content": content, "tool_calls": [call()]}, 0)
    assert len(with_calls.calls) == 1
    assert with_calls.problem == turn.problem


@pytest.mark.parametrize(
    "action",
    [
        float("nan"),
        10**400,
        {"content": b"done"},
        {"content": float("nan")},
        {"content": object()},
        {"content": [b"done"]},
        {"content": {"text": b"done"}},
        {"content": [{"type": "text", "text": "done"}] * 100_001},
        {"content": None, "refusal": b"done"},
    ],
    ids=lambda action: str(type(action)),
)
def test_the_description_of_what_cannot_be_read_is_no_valid_answer(action: Any) -> None:
    turn = read_action(action, 0)
    assert turn.problem is not None
    again = read_action(turn.raw, 0)
    assert (again.raw, again.text, again.problem) == (turn.raw, turn.text, turn.problem)


def test_a_call_written_as_text_is_an_attempt() -> None:
    text = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    turn = read_action({"content": text}, 0)
    assert (turn.text, turn.attempted, turn.calls) == (text, True, ())
    assert "written as text" in str(turn.problem)
    assert read_action({"content": text, "tool_calls": [call()]}, 0).problem is None
    assert not read_action(f"<think>I write {text}.</think>Done.", 0).attempted


def test_older_and_sloppier_forms_of_calls_are_read() -> None:
    turn = read_action({"role": None, "function_call": {"name": "look", "arguments": "null"}}, 0)
    assert [(c.name, c.arguments) for c in turn.calls] == [("look", {})]
    turn = read_action({"tool_calls": (call(arguments="[]"), call(arguments=[]))}, 0)
    assert [c.arguments for c in turn.calls] == [{}, {}]


def test_an_older_call_is_read_beside_an_empty_list() -> None:
    turn = read_action({"content": None, "tool_calls": [], "function_call": {"name": "f", "arguments": "{}"}}, 0)
    assert [call.name for call in turn.calls] == ["f"]


def test_illegal_names_are_legal_in_the_conversation_and_kept_for_lookup() -> None:
    turn = read_action({"tool_calls": [call(name="bad name!" + "x" * 100), "junk", {"function": 3}]}, 0)
    assert turn.calls[0].name.startswith("bad name!")
    for entry in turn.message["tool_calls"]:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", entry["function"]["name"])
    assert [c.problem is None for c in turn.calls] == [True, False, False]


def test_surrogates_are_replaced_everywhere() -> None:
    turn = read_action(
        {"content": "\ud800", "tool_calls": [call(arguments='{"\\ud800": "\\ud83d\\ude00 \\udc00"}')]}, 0
    )
    json.dumps(turn.message, ensure_ascii=False).encode()
    assert turn.calls[0].arguments == {"\ufffd": "\U0001f600 \ufffd"}
    assert replace_surrogates("\ud83d\ude00") == "\U0001f600"


class Panic(BaseException):
    """What extensions written in Rust raise."""


def gotcha(*args: object) -> Any:
    raise Panic


class Proxy:
    __class__ = property(gotcha)  # type: ignore[assignment]
    __getattr__ = __repr__ = __str__ = gotcha


class Meta(type):
    __name__ = property(gotcha)  # type: ignore[assignment]


class Nameless(metaclass=Meta):
    pass


class Dumper:
    model_dump = gotcha


class Fields(dict):  # type: ignore[type-arg]
    get = items = keys = __iter__ = __getitem__ = gotcha


class Items(list):  # type: ignore[type-arg]
    __iter__ = __len__ = __getitem__ = gotcha


class Text(str):
    __slots__ = ()
    __str__ = __eq__ = __format__ = encode = strip = gotcha
    __hash__ = str.__hash__


class Number(int):
    __int__ = __index__ = __abs__ = __add__ = __lt__ = gotcha


class Foreign(Mapping):  # type: ignore[type-arg]
    __iter__ = __len__ = __getitem__ = gotcha


def test_objects_that_raise_wherever_they_can_do_no_harm() -> None:
    for action in (Proxy(), Nameless(), Dumper(), Foreign()):
        turn = read_action(action, 0)
        assert turn.attempted
        assert read_action(turn.raw, 0) == turn
    inner = [Proxy(), Nameless(), Foreign(), Number(1)]
    action = Fields({Text("content"): Text("hi"), "x": Items(inner), Text("y"): inner, Proxy(): 1})
    turn = read_action(action, 0)
    assert (turn.text, turn.problem) == ("hi", None)
    assert turn.raw["y"] == ["<Proxy>", "<object>", "<Foreign>", 1]
    turn = read_action(
        {"tool_calls": Items([Fields({"function": Fields({"name": Text("look"), "arguments": inner})})])}, 0
    )
    assert turn.calls[0].problem == "Arguments must be a JSON object, not a list."


def test_shared_and_circular_references_end() -> None:
    shared: list[Any] = ["x"]
    for _ in range(40):
        shared = [shared, shared]
    loop: dict[str, Any] = {"content": "hi", "list": shared}
    loop["self"] = loop
    turn = read_action({**loop, "tool_calls": [call(arguments={"a": shared}), call(arguments=loop)]}, 0)
    assert len(json.dumps(turn.raw)) < 10_000_000
    assert [c.arguments for c in turn.calls] == [None, None]
    assert read_action(turn.raw, 0) == turn


@pytest.mark.parametrize("value", [10**301, -(10**4000), 60 * "[" + 60 * "]"])
def test_arguments_given_as_an_object_read_the_same_from_the_record(value: Any) -> None:
    arguments = {"a": json.loads(value) if isinstance(value, str) else value}
    turn = read_action({"tool_calls": [call(arguments=arguments)]}, 0)
    assert turn.calls[0].arguments == arguments
    assert read_action(json.loads(json.dumps(turn.raw)), 0) == turn


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant") | anything,
        "content": anything,
        "refusal": anything,
        "function_call": anything,
        "tool_calls": anything
        | st.lists(
            anything
            | st.fixed_dictionaries(
                {},
                optional={
                    "id": anything,
                    "function": anything
                    | st.fixed_dictionaries({}, optional={"name": anything, "arguments": anything}),
                },
            ),
            max_size=4,
        ),
    },
)


@given(action=anything | messages)
def test_any_action_becomes_a_message_that_an_api_takes_back(action: Any) -> None:
    turn = read_action(action, 0)
    json.dumps([turn.message, turn.raw], ensure_ascii=False, allow_nan=False).encode()
    assert set(turn.message) <= {"role", "content", "tool_calls"}
    assert turn.message["role"] == "assistant"
    assert isinstance(turn.message["content"], str)
    assert turn.message["content"].strip() or turn.calls
    entries = turn.message.get("tool_calls", [])
    assert [entry["id"] for entry in entries] == [c.id for c in turn.calls]
    assert len({entry["id"] for entry in entries}) == len(entries)
    for entry in entries:
        assert isinstance(json.loads(entry["function"]["arguments"]), dict)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", entry["function"]["name"])
    assert turn.problem or turn.calls or turn.text.strip()
    assert turn.problem or not turn.attempted
    assert read_action(turn.raw, 0) == turn


@given(action=anything | messages)
def test_a_message_read_whole_is_the_one_that_is_read_part_by_part(action: Any) -> None:
    whole = read_action(action, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "exact_json", lambda fields: None)
        in_parts = read_action(action, 0)
    assert json.dumps(whole.raw) == json.dumps(in_parts.raw)
    assert whole == in_parts
    assert turn_size(whole.raw, whole.message) == len(json.dumps(whole.raw)) + len(json.dumps(whole.message))


@given(value=anything)
def test_to_json_gives_json(value: Any) -> None:
    json.dumps(to_json(value), allow_nan=False).encode()


clean_text = st.text(st.characters(codec="utf-8"))
clean_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | clean_text,
    lambda inner: st.lists(inner) | st.dictionaries(clean_text, inner),
)


@given(value=clean_json)
def test_to_json_keeps_json(value: Any) -> None:
    assert to_json(value) == value


def test_a_replayed_raw_action_reads_the_same() -> None:
    action = {"content": None, "tool_calls": [call(arguments="{bad", id="k"), call(arguments={"a": 1})]}
    turn = read_action(action, 0)
    assert read_action(turn.raw, 0) == turn


def test_copies_share_nothing_that_changes() -> None:
    messages = [read_action({"tool_calls": [call()]}, 0).message]
    copies = copy_messages(messages)
    copies[0]["tool_calls"][0]["function"]["name"] = "other"
    copies[0]["content"] = "other"
    assert messages == [read_action({"tool_calls": [call()]}, 0).message]
