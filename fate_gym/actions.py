"""How any action becomes one assistant message of the conversation, and the calls that it asks for.

An action may be anything: a policy under training emits junk, and a model may attack what reads it. Reading has two
steps. First the action is made plain JSON, which is what run folders record; then that JSON is read. So a recorded
action that is played again reads as it did, and nothing after the first step ever touches a foreign object. What
enters the conversation is normalised so that any API accepts it back; what was wrong is kept beside it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from fate_gym._plain import (
    MAX_DEPTH,
    arguments_to_json,
    content_to_json,
    exact_json,
    fields_of,
    list_of,
    mapping_of,
    replace_surrogates,
    to_json,
)
from fate_gym.chat import EMPTY_ANSWER, Json, Message
from fate_gym.markup import holds_call_markup, without_thoughts
from fate_gym.replies import message_in

MOST_CALLS: Final = 1_000
"""Calls of one message; a message with more cannot be used."""

TOO_LONG: Final = {"role": "unreadable", "action": "<a message for which the record of the episode has no room>"}
"""Stands as the action where the true one cannot be kept."""

_LONGEST_NAME = 256
"""Characters that are kept of the name of a call's tool, which stands in several places of a record."""

_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_ENCODER = json.JSONEncoder(ensure_ascii=False)

_READ = ("role", "content", "refusal", "tool_calls", "function_call")
"""The fields of a message that are read."""

_TEXTS = ("content", "refusal")
"""Those that hold what a user reads."""

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text", "thought")
"""Types of content parts that hold reasoning, which no user reads."""

_CALLS = ("tool_use", "tool_call", "function_call", "custom_tool_call", "function", "server_tool_use")
"""Types of content parts that hold calls in other APIs' formats: attempts to act that have no place here."""


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """A tool call as the agent asked for it.

    Attributes:
        id: Unique in the conversation; the answer carries the same.
        name: The tool's name as given, which need not exist.
        arguments: The decoded arguments, or None where they could not be read.
        problem: Why the call cannot be run as it stands, or None.
    """

    id: str
    name: str
    arguments: dict[str, Json] | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant message, read.

    Attributes:
        message: The normalised message, as it stands in the conversation.
        raw: The action as JSON; reading it again gives an equal turn.
        text: What a user would read, "" if there is nothing. Thoughts are left out.
        calls: The requested calls, in order.
        problem: What was wrong with the message as a whole, or None. It then counts as invalid.
        attempted: Whether the message tried to act in a way that could not be read. Such a message is answered, and
            the episode goes on; any other message without calls ends it.
    """

    message: Message
    raw: Json
    text: str
    calls: tuple[RequestedCall, ...]
    problem: str | None = None
    attempted: bool = False


def read_action(
    action: object, turn: int, taken_ids: frozenset[str] | set[str] = frozenset(), *, verbatim: bool = False
) -> Turn:
    """Reads any action as an assistant message. Never raises.

    Args:
        action: A message: a dict, an SDK's object (anything with `model_dump`) or a string (a final answer); a whole
            reply of a chat completion or of the Responses API, of which the message is taken; or junk.
        turn: Index of this assistant message in the episode; new call ids are made from it.
        taken_ids: Call ids already used in the conversation.
        verbatim: Whether the text counts as it is written: with thoughts, and with calls written as text.
    """
    raw = _record(action)
    text, problem, attempted = "", None, False
    calls: tuple[RequestedCall, ...] = ()
    try:
        fields = _fields(raw)
        text, unreadable = _read_text(fields, verbatim)
        calls = _read_calls(fields, turn, taken_ids)
        attempted = any(part in _CALLS for part in unreadable)
        if unreadable:
            problem = f"Its content holds parts that cannot be read: {', '.join(unreadable)[:200]}."
        elif not calls and not text.strip():
            problem = "It has neither tool calls nor text."
        elif not calls and not verbatim and holds_call_markup(text):
            problem, attempted = "It holds a tool call written as text; use `tool_calls`.", True
    except _UnreadableError as error:
        problem, attempted = str(error), True
    message: Message = {"role": "assistant", "content": text if text.strip() or calls else EMPTY_ANSWER}
    if calls:
        message["tool_calls"] = [_call_message(call) for call in calls]
    return Turn(message, raw, text, calls, problem, attempted)


class _UnreadableError(Exception):
    """The action is not an assistant message; the text says why."""


def _record(action: object) -> Json:
    """Returns the action as JSON."""
    kind = type(action)
    if action is None or issubclass(kind, str):
        return to_json(action)
    if issubclass(kind, int | float | list | tuple):
        plain = to_json(action)
        return {"role": "unreadable", "action": plain} if isinstance(plain, str) else plain
    fields = fields_of(action)
    if fields is None:
        # Not a string: played again, that would be an answer.
        return {"role": "unreadable", "action": to_json(action)}
    fields = message_in(fields)
    if (exact := exact_json(fields)) is not None:
        return exact
    fields = {name: content_to_json(value) if name in _TEXTS else value for name, value in fields.items()}
    calls = list_of(fields.get("tool_calls"))
    if calls is not None:
        fields = {**fields, "tool_calls": [_record_call(call) for call in calls]}
    # What else a message carries is bounded apart, so that it cannot crowd out what is read.
    others = to_json({name: value for name, value in fields.items() if name not in _READ})
    kept = others if isinstance(others, dict) else {}
    return {name: to_json(fields[name]) if name in _READ else kept[name] for name in fields if name in {*_READ, *kept}}


def _record_call(call: object) -> object:
    fields = mapping_of(call)
    function = None if fields is None else mapping_of(fields.get("function"))
    if fields is None or function is None:
        return call
    arguments = mapping_of(function.get("arguments"))
    if arguments is None:
        return call
    return {**fields, "function": {**function, "arguments": arguments_to_json(arguments)}}


def _fields(raw: Json) -> dict[str, Json]:
    if isinstance(raw, str):
        return {"content": raw}
    if not isinstance(raw, dict):
        raise _UnreadableError(f"It must be a message dict, an SDK message or a string, not {_kind(raw)}.")
    if raw.get("role") == "unreadable":
        raise _UnreadableError(f"It could not be read as a message: {raw.get('action')}.")
    if raw.get("role") not in ("assistant", None):  # some servers leave the role out, or send null
        raise _UnreadableError("Its role must be 'assistant'.")
    return raw


def _read_text(fields: dict[str, Json], verbatim: bool) -> tuple[str, list[str]]:
    """Returns the visible text, and the types of content parts that could not be read.

    A `refusal` field (OpenAI) is what the user would read.
    """
    content = fields.get("content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    if not isinstance(content, str | list | dict | None):
        raise _UnreadableError(f"Its content must be a string, not {_kind(content)}.")
    if fields.get("refusal") is not None:
        parts = [*parts, {"type": "refusal", "refusal": fields["refusal"]}]
    texts: list[str] = []
    unreadable: list[str] = []
    for part in parts:
        text = _part_text(part)
        if text is None:
            unreadable.append(str(part["type"]) if isinstance(part, dict) and "type" in part else _kind(part))
        elif text:
            texts.append(text)
    text = "\n".join(texts)
    return text if verbatim else without_thoughts(text), unreadable


def _part_text(part: Json) -> str | None:
    """Returns the visible text of one part of a message's content, or None if it has none that can be read.

    The text stands under `text` (OpenAI; the Assistants API nests it under `value`), or under `content` (AgentDojo).
    """
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind in _THOUGHTS or part.get("thought") is True:
        return ""
    if kind in _CALLS:
        return None
    value = next((part[name] for name in ("text", "content", "refusal") if name in part), None)
    if isinstance(value, dict):
        value = value.get("value")
    return value if isinstance(value, str) else None


def _read_calls(fields: dict[str, Json], turn: int, taken_ids: frozenset[str] | set[str]) -> tuple[RequestedCall, ...]:
    value, single = fields.get("tool_calls"), fields.get("function_call")
    if single is not None:
        # OpenAI's form before tools. Some servers send a call in both; of two different ones, none is the right one.
        if value not in (None, []) and not _same_call(value, single):
            raise _UnreadableError("It holds both tool_calls and another function_call.")
        value = value or [{"function": single}]
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _UnreadableError(f"Its tool_calls must be a list, not {_kind(value)}.")
    if len(value) > MOST_CALLS:
        raise _UnreadableError(f"It holds {len(value)} tool calls; {MOST_CALLS} are the most.")
    used = set(taken_ids)
    calls = []
    for index, item in enumerate(value):
        call = _read_call(item, f"call_{turn}_{index}", used)
        used.add(call.id)
        calls.append(call)
    return tuple(calls)


def _same_call(calls: Json, single: Json) -> bool:
    first = calls[0] if isinstance(calls, list) else None
    return isinstance(first, dict) and first.get("function") == single


def _read_call(item: Json, fallback_id: str, used: set[str]) -> RequestedCall:
    if not isinstance(item, dict):
        return RequestedCall(_free(fallback_id, used), "", None, f"A tool call must be an object, not {_kind(item)}.")
    given = item.get("id")
    legal = isinstance(given, str) and _LEGAL_NAME.fullmatch(given) and given not in used
    call_id = given if legal and isinstance(given, str) else _free(fallback_id, used)
    function = item.get("function")
    if not isinstance(function, dict):
        return RequestedCall(call_id, "", None, "A tool call needs a `function` with `name` and `arguments`.")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return RequestedCall(call_id, "", None, "A tool call needs the name of a tool.")
    arguments, problem = _read_arguments(function.get("arguments"))
    return RequestedCall(call_id, name[:_LONGEST_NAME], arguments, problem)


def _free(preferred: str, used: set[str]) -> str:
    """Returns the preferred id, or the first variation of it that is not taken."""
    candidate, suffix = preferred, 0
    while candidate in used:
        suffix += 1
        candidate = f"{preferred}_{suffix}"
    return candidate


def _read_arguments(value: Json) -> tuple[dict[str, Json] | None, str | None]:
    """Decodes arguments: a JSON object as text (the API's form) or as a dict.

    Nothing, an empty text, `null` and an empty list (PHP's empty object) all mean that there are no arguments.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return {}, None
    if not isinstance(value, str | dict):
        return None, f"Arguments must be a JSON object, not {_kind(value)}."
    try:
        decoded = json.loads(value, parse_constant=_refuse_constant) if isinstance(value, str) else value
        # Of a dict too this makes a copy: the recorded action must not share containers with what tools may change.
        decoded = _clean(decoded, MAX_DEPTH)
    except json.JSONDecodeError as error:
        return None, f"Arguments are not valid JSON: {error.msg} at character {error.pos}."
    except (ValueError, RecursionError) as error:
        return None, f"Arguments are not valid JSON: {str(error)[:200]}."
    if decoded is None or decoded == []:
        return {}, None
    if not isinstance(decoded, dict):
        return None, f"Arguments must be a JSON object, not {_kind(decoded)}."
    return decoded, None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _clean(value: Json, depth: int) -> Json:
    """Replaces lone surrogates (JSON escapes can make them) and enforces `MAX_DEPTH`."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, dict | list) and depth <= 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {replace_surrogates(key): _clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, float) and value - value != 0:
        raise ValueError("a number is out of range")
    return value


def _call_message(call: RequestedCall) -> Message:
    """The call as an API accepts it back: legal name, arguments valid JSON."""
    name = call.name
    if not _LEGAL_NAME.fullmatch(name):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "invalid_tool_call"
    arguments = _ENCODER.encode(call.arguments or {})
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, dict) else "a list"
