"""Assembling a streamed completion, whatever dialect of the protocol its server speaks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fate_gym.actions import MOST_CALLS
from fate_gym.chat import Message

LONGEST_MESSAGE = 4_000_000
"""Characters of one message, several times what any model writes; a reply beyond it will not end."""

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""Fields of a message that come in pieces."""


class OutOfBoundsError(Exception):
    """A message went beyond its bounds."""


class StreamedMessage:
    """A completion that grows chunk by chunk.

    Attributes:
        begun: Whether any of it has come.
        length: Characters so far, of all that is kept.
        finish_reason: Why it ended, None while nothing was said of it.
        usage: As the server reported it.
        error: An error that the server sent in place of an end.
    """

    def __init__(self) -> None:
        self.begun = False
        self.length = 0
        self.finish_reason: str | None = None
        self.usage: Any = None
        self.error: Any = None
        self._texts: dict[str, io.StringIO] = {}
        self._fields: Message = {}
        self._calls = _Calls()

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Adds a chunk.

        Raises:
            OutOfBoundsError: The message is longer than any model's.
        """
        self.usage = chunk.get("usage") or self.usage
        self.error = chunk.get("error") or self.error
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping):
            return
        self.begun = True
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.error = choice.get("error") or self.error
        # Some servers send the last piece, or all of it, as a message.
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, Mapping):
            for name, value in delta.items():
                self._add_field(name, value)
        if self.length > LONGEST_MESSAGE or len(self._calls.calls) > MOST_CALLS:
            raise OutOfBoundsError

    def text(self) -> str:
        """Returns the content so far."""
        return self._texts["content"].getvalue() if "content" in self._texts else ""

    def message(self) -> Message:
        """Returns the message as a server would have sent it whole."""
        message: Message = {"role": "assistant", "content": None, **self._fields}
        message |= {name: text.getvalue() for name, text in self._texts.items()}
        if self._calls.calls:
            message["tool_calls"] = self._calls.calls
        return message

    def _add_field(self, name: str, value: Any) -> None:
        if value is None or name == "role":
            return
        if name == "tool_calls":
            for piece in value if isinstance(value, list) else [value]:
                if isinstance(piece, Mapping):
                    self.length += self._calls.add(piece)
        elif name == "content" and isinstance(value, list):
            for field, text in _parts(value):
                self._add_text(field, text)
        elif name in _TEXTS and isinstance(value, str):
            self._add_text(name, value)
        elif isinstance(value, list):
            self.length += len(name) + len(repr(value))
            kept = self._fields.setdefault(name, [])
            for item in value:
                _add_item(kept, item)
        else:
            self.length += len(name) + len(repr(value))
            self._fields[name] = value

    def _add_text(self, name: str, text: str) -> None:
        self._texts.setdefault(name, io.StringIO()).write(text)
        self.length += len(text)


def _parts(content: list[Any]) -> Iterator[tuple[str, str]]:
    """Yields the texts of a piece that comes as content blocks (Mistral), each with the field that it belongs to."""
    for part in content:
        if isinstance(part, str):
            yield "content", part
        elif isinstance(part, Mapping):
            if isinstance(text := part.get("text"), str):
                yield "content", text
            thoughts = part.get("thinking")
            for thought in thoughts if isinstance(thoughts, list) else [thoughts]:
                text = thought.get("text") if isinstance(thought, Mapping) else thought
                if isinstance(text, str):
                    yield "reasoning_content", text


def _add_item(items: list[Any], item: Any) -> None:
    """Adds a piece of a list such as `reasoning_details`, whose items are streamed in pieces that share an index."""
    if not isinstance(item, Mapping):
        items.append(item)
        return
    last = items[-1] if items else None
    place = item.get("index"), item.get("type")
    if place[0] is None or not isinstance(last, dict) or (last.get("index"), last.get("type")) != place:
        items.append(dict(item))
        return
    for name, value in item.items():
        if name in ("text", "summary") and isinstance(value, str) and isinstance(last.get(name), str):
            last[name] += value
        elif value is not None:
            last[name] = value


class _Calls:
    """The calls of a message, of pieces that are told apart by id, by index, and by their order, in this order.

    Attributes:
        calls: The calls so far, as a server would have sent them whole.
    """

    def __init__(self) -> None:
        self.calls: list[Message] = []
        self._by_id: dict[str, Message] = {}
        self._by_index: dict[str, Message] = {}

    def add(self, piece: Mapping[str, Any]) -> int:
        """Adds a piece to the call that it belongs to; returns how many characters that are."""
        function = _mapping(piece.get("function"))
        call_id, index = piece.get("id") or None, piece.get("index")
        call = self._owner(call_id, index, function)
        length = 0
        if call is None:
            call = {"type": "function", "function": {}}
            self.calls.append(call)
        if call_id is not None:
            length += 0 if str(call_id) in self._by_id else len(repr(call_id))
            call.setdefault("id", call_id)
            self._by_id[str(call_id)] = call
        if index is not None:
            length += 0 if str(index) in self._by_index else len(repr(index))
            self._by_index[str(index)] = call
        for name, value in piece.items():
            if name not in ("id", "index", "type", "function") and value is not None:
                call[name] = value
                length += len(name) + len(repr(value))
        return length + _add_function(call["function"], function)

    def _owner(self, call_id: Any, index: Any, function: Mapping[str, Any]) -> Message | None:
        """Returns the call that a piece goes on with, or None where it begins another."""
        call: Message | None
        if call_id is not None and str(call_id) in self._by_id:
            call = self._by_id[str(call_id)]
        elif index is not None:
            call = self._by_index.get(str(index))
        else:
            call = self.calls[-1] if self.calls else None
        if call is None or _begins_another(call, call_id, function):
            return None
        return call


def _begins_another(call: Message, call_id: Any, function: Mapping[str, Any]) -> bool:
    """Whether a piece that bears a call's index, or follows it, is nevertheless of the next one."""
    if call_id is not None and call.get("id", call_id) != call_id:
        return True
    # Some servers repeat the name with every piece; a whole call that is followed by a name and more is over.
    name, arguments = function.get("name"), function.get("arguments")
    known = call["function"].get("name")
    if not name or not known or (name == known and not arguments):
        return False
    return _is_whole(call["function"].get("arguments"))


def _is_whole(arguments: Any) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, TypeError, RecursionError):
        return False


def _add_function(function: Message, piece: Mapping[str, Any]) -> int:
    length = sum(len(name) for name in piece.keys() - function.keys())
    for name, value in piece.items():
        if name == "arguments" and isinstance(value, Mapping | list):
            function[name] = json.dumps(value)
            length += len(function[name])
        elif not isinstance(value, str):
            if value is not None:
                function[name] = value
                length += len(repr(value))
        elif name != "name" or function.get(name) != value:
            function[name] = function.get(name, "") + value
            length += len(value)
    return length


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
