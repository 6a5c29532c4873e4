"""What a session has said to its server, in the server's own form.

Servers put more into a message than the environment keeps: reasoning (DeepSeek, Kimi, OpenRouter), signatures of
thoughts (Gemini), call ids that mean something to the model (Kimi). Some refuse the conversation without them, and
some models fall silent. So a session sends each message back as it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fate_gym.chat import EMPTY_ANSWER, Message

_READ = frozenset({"role", "content", "tool_calls", "function_call", "finish_reason"})
"""Fields of a message that the environment reads; all others are the provider's own."""

_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _OwnCall:
    """What is sent back of a call; what no server takes is left out."""

    id: str | None
    function: Message
    fields: Message


@dataclass(frozen=True, slots=True)
class _OwnMessage:
    """What is sent back of an assistant message; `calls` is None where they are no list of objects."""

    content: str | None
    calls: tuple[_OwnCall, ...] | None
    fields: Message


class History:
    """The assistant messages of one conversation, by their place in it."""

    def __init__(self) -> None:
        self._messages: dict[int, _OwnMessage] = {}

    def remember(self, place: int, message: Message) -> None:
        """Keeps a message that came as the answer to a conversation of `place` messages."""
        # Read once: it is sent back with every later turn.
        self._messages[place] = _own_message(message)

    def restore(self, messages: list[Message], refused: Collection[str] = ()) -> list[Message]:
        """Returns a conversation as its server knows it.

        Each assistant message is verbatim, except for what no server takes back: arguments that are not a JSON object,
        names that are not legal, ids that are missing or stand twice, and content that is not a string. These are in
        the environment's form, and so is a whole message where the conversation at its place is not what came from
        the server (after a fork, or behind a defence). A tool's result bears the id that the server gave to the call.

        Args:
            messages: The conversation in the environment's form.
            refused: Fields that the server does not take back, though it sends them.
        """
        # What stands further on belongs to a branch that was left.
        self._messages = {place: message for place, message in self._messages.items() if place < len(messages)}
        if not self._messages:
            return messages
        ids: dict[str, str] = {}
        restored = []
        for place, message in enumerate(messages):
            own = self._messages.get(place)
            if message["role"] == "tool":
                call_id = message["tool_call_id"]
                message = {**message, "tool_call_id": ids.get(call_id, call_id)}
            elif message["role"] == "assistant":
                message = _restored(message, own, ids, refused)
            restored.append(message)
        return restored


def provider_fields(messages: list[Message]) -> set[str]:
    """Returns the fields of a conversation that only its server knows the meaning of."""
    fields: set[str] = set()
    for message in messages:
        if message["role"] == "assistant":
            fields.update(message.keys() - _READ)
            for call in message.get("tool_calls", ()):
                fields.update(call.keys() - {"id", "type", "function"})
    return fields


def _own_message(message: Message) -> _OwnMessage:
    content, calls = message.get("content"), message.get("tool_calls") or []
    fits = isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
    return _OwnMessage(
        content if isinstance(content, str) else None,
        tuple(map(_own_call, calls)) if fits else None,
        _fields(message, _READ),
    )


def _own_call(call: Mapping[str, Any]) -> _OwnCall:
    call_id, function = call.get("id"), call.get("function")
    function = dict(function) if isinstance(function, Mapping) else {}
    for name, is_taken in (("name", _is_legal_name), ("arguments", _is_object)):
        if name in function and not is_taken(function[name]):
            del function[name]
    own_id = call_id if isinstance(call_id, str) and call_id else None
    return _OwnCall(own_id, function, _fields(call, ("id", "type", "function")))


def _fields(message: Mapping[str, Any], read: Collection[str]) -> Message:
    return {name: value for name, value in message.items() if value is not None and name not in read}


def _restored(message: Message, own: _OwnMessage | None, ids: dict[str, str], refused: Collection[str]) -> Message:
    """Returns an assistant message as its server sent it, and notes which id the server gave to each call."""
    calls: list[Message] = message.get("tool_calls", [])
    if own is None or own.calls is None or len(own.calls) != len(calls):
        ids.update({call["id"]: call["id"] for call in calls})
        return message
    restored: Message = {"role": "assistant", "content": _content(message, own, calls)}
    restored |= {name: value for name, value in own.fields.items() if name not in refused}
    if calls:
        pairs = zip(calls, own.calls, strict=True)
        restored["tool_calls"] = [_restored_call(call, own_call, ids, refused) for call, own_call in pairs]
    return restored


def _content(message: Message, own: _OwnMessage, calls: list[Message]) -> str:
    if own.content is not None and (own.content.strip() or calls):
        return own.content
    text: str = message["content"]
    # The environment's form of an empty message stands for a turn that failed; beside calls it says too much.
    return "" if calls and text == EMPTY_ANSWER else text


def _restored_call(call: Message, own: _OwnCall, ids: dict[str, str], refused: Collection[str]) -> Message:
    call_id = own.id if own.id is not None and own.id not in ids.values() else call["id"]
    ids[call["id"]] = call_id
    kept = {name: value for name, value in own.fields.items() if name not in refused}
    return {**kept, "id": call_id, "type": "function", "function": {**call["function"], **own.function}}


def _is_legal_name(name: Any) -> bool:
    return isinstance(name, str) and _LEGAL_NAME.fullmatch(name) is not None


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(arguments, str) and isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False
