"""Reads the conversation of a stored episode, which may be a stranger's: what code that shows it relies on is there."""

from __future__ import annotations

from typing import Any, Final

from fate_gym.chat import Message
from fate_gym.storage import Fields

_ROLES: Final = ("system", "user", "assistant", "tool")


def read_messages(fields: Fields) -> list[Message]:
    """Returns the messages of an episode.

    They are most of it, so each is looked at as a whole first; what does not seem right is read again by its fields.

    Raises:
        RunCorruptError: A message lacks a part, or has one of another type; the error names it.
    """
    messages: list[Any] = fields.items("messages")
    if not all(map(_is_message, messages)):
        for message in fields.objects("messages"):
            _check(message)
    return messages


def _is_message(message: Any) -> bool:
    if type(message) is not dict:
        return False
    role, content = message.get("role"), message.get("content", 0)
    return (
        role in _ROLES
        and (type(content) is str or content is None)
        and (role != "tool" or type(message.get("tool_call_id")) is str)
        and ("tool_calls" not in message or _are_requests(message["tool_calls"]))
    )


def _are_requests(calls: Any) -> bool:
    return type(calls) is list and all(
        type(call) is dict
        and type(call.get("id")) is str
        and type(function := call.get("function")) is dict
        and type(function.get("name")) is type(function.get("arguments")) is str
        for call in calls
    )


def _check(message: Fields) -> None:
    role = message.choice("role", _ROLES)
    message.text_or_none("content")
    if role == "tool":
        message.text("tool_call_id")
    for call in message.objects("tool_calls") if "tool_calls" in message.values else ():
        call.text("id")
        function = call.object("function")
        function.text("name")
        function.text("arguments")
