"""What a session has said to its server, in the server's own form.

Servers put more into a message than the environment keeps: reasoning (DeepSeek, Kimi, OpenRouter), signatures of
thoughts (Gemini), call ids that mean something to the model (Kimi). Some refuse the conversation without them, and
some models fall silent. So a session sends each message back as it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from fate_gym.chat import EMPTY_ANSWER, Message

_READ = frozenset({"role", "content", "tool_calls", "function_call", "finish_reason"})
"""Fields of a message that the environment reads; all others are the provider's own."""

_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class History:
    """The assistant messages of one conversation, by their place in it."""

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}

    def remember(self, place: int, message: Message) -> None:
        """Keeps a message that came as the answer to a conversation of `place` messages."""
        self._messages[place] = message

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


def _restored(message: Message, own: Message | None, ids: dict[str, str], refused: Collection[str]) -> Message:
    """Returns an assistant message as its server sent it, and notes which id the server gave to each call."""
    calls: list[Message] = message.get("tool_calls", [])
    own_calls = _own_calls(own, len(calls))
    if own is None or own_calls is None:
        ids.update({call["id"]: call["id"] for call in calls})
        return message
    restored: Message = {"role": "assistant", "content": _content(message, own, calls)}
    restored |= {name: value for name, value in own.items() if _is_kept(name, value, _READ, refused)}
    if calls:
        pairs = zip(calls, own_calls, strict=True)
        restored["tool_calls"] = [_restored_call(call, own_call, ids, refused) for call, own_call in pairs]
    return restored


def _own_calls(own: Message | None, count: int) -> list[Mapping[str, Any]] | None:
    """Returns a server's calls if there are as many as the environment has read, else None."""
    calls = (own or {}).get("tool_calls") or []
    fits = isinstance(calls, list) and len(calls) == count and all(isinstance(call, Mapping) for call in calls)
    return calls if fits else None


def _is_kept(name: str, value: Any, read: Collection[str], refused: Collection[str]) -> bool:
    return value is not None and name not in read and name not in refused


def _content(message: Message, own: Message, calls: list[Message]) -> str:
    content = own.get("content")
    if isinstance(content, str) and (content.strip() or calls):
        return content
    text: str = message["content"]
    # The environment's form of an empty message stands for a turn that failed; beside calls it says too much.
    return "" if calls and text == EMPTY_ANSWER else text


def _restored_call(call: Message, own: Mapping[str, Any], ids: dict[str, str], refused: Collection[str]) -> Message:
    own_id = own.get("id")
    call_id = own_id if isinstance(own_id, str) and own_id and own_id not in ids.values() else call["id"]
    ids[call["id"]] = call_id
    function = own.get("function")
    function = dict(function) if isinstance(function, Mapping) else {}
    if not _LEGAL_NAME.fullmatch(str(function.get("name"))):
        function["name"] = call["function"]["name"]
    if not _is_object(function.get("arguments")):
        function["arguments"] = call["function"]["arguments"]
    kept = {name: value for name, value in own.items() if _is_kept(name, value, ("id", "function"), refused)}
    return {**kept, "id": call_id, "type": "function", "function": function}


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(arguments, str) and isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False
