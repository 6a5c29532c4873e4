"""Whole replies of APIs, as their SDKs give them, and the one assistant message in each."""

from __future__ import annotations

from typing import Any

from fate_gym._plain import fields_of, list_of


def message_in(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the assistant message of a reply; a message, which alone has a role, and anything else as they are.

    Of a chat completion that is the message of its first choice, of a Responses object what its output items say: texts
    and refusals become content, function calls become tool calls. Items of other kinds stay among the content, where
    thoughts are passed over and the rest is named as not readable.

    Args:
        fields: The reply.
    """
    if "role" in fields:
        return fields
    if choices := list_of(fields.get("choices")):
        choice = fields_of(choices[0]) or {}
        message = fields_of(choice.get("message"))
        return fields if message is None else _message(message, choice.get("finish_reason"))
    items = list_of(fields.get("output"))
    return fields if items is None else _output_message(items, fields)


def _output_message(items: list[Any], fields: dict[str, Any]) -> dict[str, Any]:
    content: list[Any] = []
    calls: list[Any] = []
    for item in items:
        parts = fields_of(item) or {}
        # A foreign object may raise when it is compared.
        kind = parts["type"] if type(parts.get("type")) is str else None
        if kind == "function_call":
            function = {name: parts.get(name) for name in ("name", "arguments")}
            calls.append({"id": parts.get("call_id"), "type": "function", "function": function})
        elif kind == "message" and (said := list_of(parts.get("content"))) is not None:
            content += [fields_of(part) or part for part in said]
        else:
            content.append(parts or item)
    details = fields_of(fields.get("incomplete_details")) or {}
    return _message({"content": content, **({"tool_calls": calls} if calls else {})}, details.get("reason"))


def _message(message: dict[str, Any], finish_reason: Any) -> dict[str, Any]:
    """Gives a message a role, so that what was recorded of it is not taken for a reply when it is read again."""
    finished = {"finish_reason": finish_reason} if type(finish_reason) is str else {}
    return {"role": "assistant", **message, **finished}
