"""The one chat format: OpenAI chat messages and tool schemas as plain dicts, and how any action becomes one.

An action may be anything: a policy under training emits junk. `read_action` never raises. What enters the
conversation is normalised so that any API accepts it back; what was wrong is kept beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Any
"""Whatever `json.dumps` takes. (A recursive alias would make every reader cast.)"""

Message: TypeAlias = dict[str, Any]
"""A chat message: `role`, `content`, and `tool_calls` or `tool_call_id` where they belong."""

ToolSchema: TypeAlias = dict[str, Any]
"""A tool as the API takes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

MAX_DEPTH = 64
"""Arguments nested deeper than this are refused: serialisers further down recurse."""

EMPTY_ANSWER = "(no answer)"
"""Stands in the conversation where an assistant message held nothing, since APIs refuse an empty one."""

_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


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
        raw: The action as it came, made JSON-able.
        text: Visible text, "" if there is none. Reasoning parts are left out.
        calls: The requested calls, in order.
        problem: Why the message holds nothing to act on, or None.
    """

    message: Message
    raw: Json
    text: str
    calls: tuple[RequestedCall, ...]
    problem: str | None = None


def read_action(action: object, turn: int, taken_ids: frozenset[str] | set[str] = frozenset()) -> Turn:
    """Reads any action as an assistant message. Never raises.

    Args:
        action: A dict, an SDK message object (anything with `model_dump`), a string (a final answer), or junk.
        turn: Index of this assistant message in the episode; new call ids are made from it.
        taken_ids: Call ids already used in the conversation.
    """
    try:
        fields = _fields(action)
        raw = to_json(action if isinstance(action, str) else fields)
        text = replace_surrogates(_visible_text(fields))
        calls = _read_calls(fields.get("tool_calls"), turn, taken_ids)
        if not calls and not text.strip():
            raise _Unreadable("It has neither tool calls nor text.")
    except _Unreadable as problem:
        message: Message = {"role": "assistant", "content": EMPTY_ANSWER}
        return Turn(message=message, raw=to_json(action), text="", calls=(), problem=str(problem))
    except Exception as error:
        # Hostile objects (a mapping whose `get` raises, say) end here.
        problem_text = f"It could not be read ({type(error).__name__})."
        message = {"role": "assistant", "content": EMPTY_ANSWER}
        return Turn(message=message, raw=to_json(action), text="", calls=(), problem=problem_text)
    message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [_call_message(call) for call in calls]
    return Turn(message=message, raw=raw, text=text, calls=calls)


def copy_messages(messages: list[Message]) -> list[Message]:
    """Copies a conversation so that no one outside can change ours; much faster than `copy.deepcopy`."""
    copies = []
    for message in messages:
        twin = dict(message)
        if "tool_calls" in twin:
            twin["tool_calls"] = [{**call, "function": dict(call["function"])} for call in twin["tool_calls"]]
        copies.append(twin)
    return copies


def replace_surrogates(text: str) -> str:
    """Joins surrogate pairs and replaces lone ones by U+FFFD, which no encoder refuses."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def to_json(value: object, depth: int = MAX_DEPTH) -> Json:
    """Returns the nearest JSON value: what JSON cannot hold becomes a short description of itself."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return replace_surrogates(str(value))
    if isinstance(value, int) and abs(value) < 10**300:
        return int(value)
    if isinstance(value, float) and value - value == 0:
        return float(value)
    if depth > 0 and isinstance(value, Mapping):
        try:
            return {
                replace_surrogates(k) if isinstance(k, str) else _describe(k): to_json(v, depth - 1)
                for k, v in value.items()
            }
        except Exception:
            return _describe(value)
    if depth > 0 and isinstance(value, list | tuple):
        return [to_json(item, depth - 1) for item in value]
    return _describe(value)


class _Unreadable(Exception):
    """The action is no assistant message that could be acted on; the text says why."""


def _describe(value: object) -> str:
    """Names a value that JSON cannot hold, without trusting its `repr`."""
    return f"<{type(value).__name__}>"


def _fields(action: object) -> Mapping[str, Any]:
    if isinstance(action, str):
        return {"content": action}
    if not isinstance(action, Mapping):
        dump = getattr(action, "model_dump", None)
        if not callable(dump):
            raise _Unreadable(f"It must be a message dict, an SDK message or a string, not {type(action).__name__}.")
        action = dump()
        if not isinstance(action, Mapping):
            raise _Unreadable("Its model_dump() gave no dict.")
    role = action.get("role", "assistant")
    if role != "assistant":
        raise _Unreadable("Its role must be 'assistant'.")
    return action


def _visible_text(fields: Mapping[str, Any]) -> str:
    """Joins text and refusal parts; a `refusal` field (OpenAI) is what the user would read."""
    content = fields.get("content")
    parts: list[str] = []
    if isinstance(content, str):
        parts.append(content)
    elif isinstance(content, list | tuple):
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and part.get("type") in ("text", "refusal"):
                piece = part.get(part["type"])
                parts.append(piece if isinstance(piece, str) else "")
    elif content is not None:
        raise _Unreadable(f"Its content must be a string, not {type(content).__name__}.")
    refusal = fields.get("refusal")
    if isinstance(refusal, str):
        parts.append(refusal)
    return "\n".join(part for part in parts if part)


def _read_calls(value: object, turn: int, taken_ids: frozenset[str] | set[str]) -> tuple[RequestedCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _Unreadable(f"Its tool_calls must be a list, not {type(value).__name__}.")
    used = set(taken_ids)
    calls = []
    for index, item in enumerate(value):
        call = _read_call(item, f"call_{turn}_{index}", used)
        used.add(call.id)
        calls.append(call)
    return tuple(calls)


def _read_call(item: object, fallback_id: str, used: set[str]) -> RequestedCall:
    if not isinstance(item, Mapping):
        return RequestedCall(_free(fallback_id, used), "", None, f"A tool call must be an object, not {_kind(item)}.")
    given = item.get("id")
    legal = isinstance(given, str) and _LEGAL_NAME.fullmatch(given) and given not in used
    call_id = given if legal and isinstance(given, str) else _free(fallback_id, used)
    function = item.get("function")
    if not isinstance(function, Mapping):
        return RequestedCall(call_id, "", None, "A tool call needs a `function` with `name` and `arguments`.")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return RequestedCall(call_id, "", None, "A tool call needs the name of a tool.")
    arguments, problem = _read_arguments(function.get("arguments"))
    return RequestedCall(call_id, replace_surrogates(name), arguments, problem)


def _free(wanted: str, used: set[str]) -> str:
    """Returns `wanted`, or the first variation of it that is not taken."""
    candidate, suffix = wanted, 0
    while candidate in used:
        suffix += 1
        candidate = f"{wanted}_{suffix}"
    return candidate


def _read_arguments(value: object) -> tuple[dict[str, Json] | None, str | None]:
    """Decodes arguments: a JSON object as text (the API's form) or as a dict; none at all means no arguments."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}, None
    try:
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        if not isinstance(value, str) and not isinstance(value, dict):
            return None, f"Arguments must be a JSON object, not {_kind(value)}."
        decoded = json.loads(replace_surrogates(text), parse_constant=_refuse_constant)
        decoded = _clean(decoded, MAX_DEPTH)
    except json.JSONDecodeError as error:
        return None, f"Arguments are not valid JSON: {error.msg} at character {error.pos}."
    except (ValueError, TypeError, RecursionError) as error:
        return None, f"Arguments are not valid JSON: {str(error)[:200]}."
    if not isinstance(decoded, dict):
        return None, f"Arguments must be a JSON object, not {_kind(decoded)}."
    return decoded, None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


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


def _call_message(call: RequestedCall) -> dict[str, Any]:
    """The call as an API accepts it back: legal name, arguments valid JSON."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64] or "invalid_tool_call"
    arguments = json.dumps(call.arguments or {}, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _kind(value: object) -> Literal["null", "a list", "a string", "a number", "an object", "something else"]:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else "something else"
