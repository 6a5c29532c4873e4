"""What SDKs and servers return whole is an action as it comes."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from fate_gym.actions import read_action

SHIP = {"name": "ship", "arguments": '{"parcel": 1}'}
HEAD = {"id": "x", "model": "m", "created": 0, "object": "chat.completion"}
RESPONSE = {
    **{"id": "r", "object": "response", "created_at": 0, "model": "m", "parallel_tool_calls": True},
    **{"tool_choice": "auto", "tools": [], "status": "completed"},
}


def completion(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    other = {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "the second"}}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}
    return {**HEAD, "choices": [choice, other]}


def response(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**RESPONSE, "output": list(items), **fields}


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}


THOUGHT = {"type": "reasoning", "id": "t", "summary": [{"type": "summary_text", "text": "I could steal it."}]}
CALL = {"type": "function_call", "id": "f", "call_id": "call_9", "status": "completed", **SHIP}
TOOL_CALL = {"id": "call_9", "type": "function", "function": SHIP}

CASES: dict[str, tuple[Any, str, list[str]]] = {
    "completion": (completion({"content": "Done."}), "Done.", []),
    "completion with a call": (completion({"content": None, "tool_calls": [TOOL_CALL]}, "tool_calls"), "", ["ship"]),
    "response": (response(THOUGHT, said("Done.")), "Done.", []),
    "response with a call": (response(THOUGHT, said("Wait."), CALL), "Wait.", ["ship"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("as_object", [True, False], ids=["object", "dict"])
def test_a_whole_reply_reads_as_its_message(case: str, as_object: bool) -> None:
    reply, text, names = CASES[case]
    kind = ChatCompletion if "choices" in reply else Response
    turn = read_action(kind.model_validate(reply) if as_object else reply, 0)
    assert turn.problem is None
    assert turn.text == text
    assert [(call.name, call.id) for call in turn.calls] == [(name, "call_9") for name in names]
    assert "steal" not in turn.text
    # Played again from a run folder, it reads the same.
    assert read_action(json.loads(json.dumps(turn.raw)), 0) == turn


def test_why_a_model_stopped_is_recorded() -> None:
    assert read_action(completion({"content": "x"}, "content_filter"), 0).raw["finish_reason"] == "content_filter"  # type: ignore[index,call-overload]
    cut = response(said("Do"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert read_action(Response.model_validate(cut), 0).raw["finish_reason"] == "max_output_tokens"  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ({**HEAD, "choices": []}, "neither tool calls nor text"),
        ({**HEAD, "choices": [5]}, "neither tool calls nor text"),
        ({**HEAD, "choices": [{"message": None}]}, "neither tool calls nor text"),
        (response(), "neither tool calls nor text"),
        (response(THOUGHT), "neither tool calls nor text"),
        (response({"type": "custom_tool_call", "call_id": "c", "name": "x", "input": "y"}), "custom_tool_call"),
        (response({"type": "function_call"}), None),
        ({"output": ["Done.", 5, None, [1]]}, "cannot be read"),
        ({"choices": [{"message": {"choices": [{"message": {"content": "inner"}}]}}]}, "neither tool calls nor text"),
    ],
)
def test_a_reply_without_a_message_is_an_invalid_action_that_reads_the_same_again(reply: Any, problem: Any) -> None:
    turn = read_action(reply, 0)
    if problem is None:
        assert turn.calls[0].problem is not None
    else:
        assert problem in (turn.problem or "")
    assert read_action(json.loads(json.dumps(turn.raw)), 0) == turn


def test_the_loop_takes_what_a_client_returns() -> None:
    env = gym.make("toy/Parcels-v0")
    env.reset(seed=0, options={"task_id": "shop/ship"})
    env.step(ChatCompletion.model_validate(completion({"content": None, "tool_calls": [TOOL_CALL]}, "tool_calls")))
    _, _, terminated, _, info = env.step(Response.model_validate(response(said("Shipped."))))
    assert terminated
    assert info["verdict"].vector.tolist() == [1.0] * 4
