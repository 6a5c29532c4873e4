"""What a session sends back to its server: the server's own messages, at the right places, with its own ids."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fate_gym.actions import read_action
from fate_gym.agents._history import History, provider_fields
from fate_gym.chat import EMPTY_ANSWER, Message

OPENING: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


def call(name: str = "look", arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def conversation(*actions: Message) -> list[Message]:
    """What the environment makes of a server's messages, with an answer to each call."""
    messages, taken = list(OPENING), set()
    for number, action in enumerate(actions):
        turn = read_action(action, number, taken)
        messages.append(turn.message)
        taken |= {asked.id for asked in turn.calls}
        messages += [
            {"role": "tool", "tool_call_id": asked.id, "content": f"result {asked.id}"} for asked in turn.calls
        ]
        if not turn.calls:
            messages.append({"role": "user", "content": "Go on."})
    return messages


def sent(*actions: Message, refused: tuple[str, ...] = ()) -> list[Message]:
    """What the server of these messages is sent in the end."""
    history, messages = History(), conversation(*actions)
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for place, action in zip(places, actions, strict=True):
        history.remember(place, action)
    return history.restore(messages, refused)[len(OPENING) :]


def test_a_message_goes_back_with_all_that_its_server_gave() -> None:
    action = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "reasoning_details": [{"type": "x", "data": "y"}],
        "annotations": None,
        "tool_calls": [call(id="functions.look:0", extra_content={"signature": "s"}, index=0)],
    }
    message, result = sent(action)
    assert message["content"] == ""
    assert (message["reasoning_content"], message["reasoning_details"]) == ("hm", [{"type": "x", "data": "y"}])
    assert message["tool_calls"] == action["tool_calls"]
    assert "annotations" not in message
    assert result["tool_call_id"] == "functions.look:0"


def test_a_first_turn_is_sent_as_the_environment_gives_it() -> None:
    assert History().restore(OPENING) is OPENING


def test_ids_that_are_missing_or_stand_twice_are_told_apart() -> None:
    calls = [call(id="same"), call(id="same"), call(id=""), call(), call(id=7)]
    message, *results = sent({"content": "", "tool_calls": calls})
    ids = [asked["id"] for asked in message["tool_calls"]]
    assert ids[0] == "same"
    assert len(set(ids)) == 5
    assert all(isinstance(name, str) and name for name in ids)
    assert [result["tool_call_id"] for result in results[:5]] == ids


def test_the_same_id_in_two_turns_is_told_apart() -> None:
    first, first_result, second, second_result = sent(*[{"content": "", "tool_calls": [call(id="a.b")]}] * 2)
    assert first["tool_calls"][0]["id"] == first_result["tool_call_id"] == "a.b"
    assert second["tool_calls"][0]["id"] == second_result["tool_call_id"] != "a.b"


def test_what_no_server_takes_back_goes_in_the_environments_form() -> None:
    calls = [call(arguments='{"broken'), call(arguments={"n": 5}), call(name="a name\n"), call(arguments=None)]
    message = sent({"content": ["blocks"], "tool_calls": calls})[0]
    functions = [asked["function"] for asked in message["tool_calls"]]
    assert all(isinstance(json.loads(function["arguments"]), dict) for function in functions)
    assert json.loads(functions[1]["arguments"]) == {"n": 5}
    assert "\n" not in functions[2]["name"]
    assert message["content"] == "blocks"


def test_an_empty_turn_becomes_a_short_text_and_keeps_its_reasoning() -> None:
    message = sent({"content": "", "reasoning_content": "I thought for too long"})[0]
    assert message == {
        "role": "assistant",
        "content": EMPTY_ANSWER,
        "reasoning_content": "I thought for too long",
    }


def test_thoughts_in_the_text_go_back_though_the_environment_leaves_them_out() -> None:
    text = "<think>hm</think>\nI look."
    assert sent({"content": text, "tool_calls": [call(id="a")]})[0]["content"] == text


def test_fields_that_the_server_refuses_are_left_out() -> None:
    action = {"content": "x", "reasoning": "r", "tool_calls": [call(id="a", extra=1)]}
    whole, bare = sent(action)[0], sent(action, refused=("reasoning", "extra"))[0]
    assert provider_fields([whole]) == {"reasoning", "extra"}
    assert provider_fields([bare]) == set()


def test_a_conversation_that_went_another_way_is_sent_as_the_environment_gives_it() -> None:
    history = History()
    history.remember(2, {"content": "", "reasoning": "old", "tool_calls": [call(id="old")]})
    history.remember(4, {"content": "gone"})
    messages = conversation({"content": "", "tool_calls": [call(id="b"), call(id="c")]})[:4]
    assert history.restore(messages) == messages
    # The place beyond the end belonged to the branch that was left.
    assert history.restore([*messages, {"role": "assistant", "content": "new"}])[-1]["content"] == "new"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
CALLS = st.lists(st.fixed_dictionaries({}, optional={"id": JSON, "function": JSON, "x": JSON}) | JSON, max_size=4)


@given(
    st.lists(st.fixed_dictionaries({"content": JSON, "tool_calls": st.none() | CALLS | JSON}), min_size=1, max_size=3)
)
def test_whatever_a_server_sent_is_sent_back_in_a_legal_form(actions: list[dict[str, Any]]) -> None:
    open_ids: list[str] = []
    for message in sent(*actions):
        if message["role"] == "tool":
            open_ids.remove(message["tool_call_id"])
            continue
        assert not open_ids
        assert isinstance(message["content"], str)
        for asked in message.get("tool_calls", ()):
            assert isinstance(json.loads(asked["function"]["arguments"]), dict)
            assert asked["id"] not in open_ids
            open_ids.append(asked["id"])
    assert not open_ids
