"""Reading chat completions, whole or streamed, as plain JSON.

What a *model* does wrong (no text, broken arguments, unknown tools) is left in the message, for the environment to
judge; what a *server* does wrong (no choices, a cut stream) raises `UnusableError`: it says nothing about the model.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any

from fate_gym.chat import Message
from fate_gym.serving.retrying import UnusableError

_LONGEST = 4_000_000
"""Characters of a message: several times what any model can write in one."""

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")

_USAGE = {
    "prompt_tokens": ("prompt_tokens",),
    "completion_tokens": ("completion_tokens",),
    "cached_tokens": ("prompt_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
}


def read_completion(body: object) -> tuple[Message, dict[str, float]]:
    """Returns the message of a completion as it came, and its usage.

    Raises:
        UnusableError: It is none, or beyond any model's length.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(choices, list):
        raise UnusableError("the answer is no chat completion")
    message = choices[0].get("message") if choices and isinstance(choices[0], Mapping) else None
    if not isinstance(message, dict):
        raise UnusableError("the answer holds no message")
    if len(repr(message)) > _LONGEST:
        raise UnusableError(f"the answer is longer than {_LONGEST} characters")
    return message, read_usage(body.get("usage"))


def read_usage(usage: object) -> dict[str, float]:
    """Returns the token counts that a server reported, by our names; what it left out is left out."""
    found: dict[str, float] = {}
    for name, path in _USAGE.items():
        value: Any = usage
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


async def read_stream(chunks: AsyncIterable[Any]) -> tuple[Message, dict[str, float]]:
    """Assembles a streamed completion.

    Raises:
        UnusableError: The stream ended before the message did, is none, or beyond any model's length.
    """
    texts: dict[str, list[str]] = {}
    calls: dict[Any, Message] = {}
    usage: object = None
    finished, length = False, 0
    async for chunk in chunks:
        if not isinstance(chunk, Mapping):
            raise UnusableError("the stream is none of chat completions")
        usage = chunk.get("usage") or usage
        for choice in (chunk.get("choices") or ())[:1]:
            finished = finished or choice.get("finish_reason") is not None
            delta = choice.get("delta") or {}
            for name in _TEXTS:
                if isinstance(piece := delta.get(name), str):
                    texts.setdefault(name, []).append(piece)
                    length += len(piece)
            for call in delta.get("tool_calls") or ():
                length += _add(calls, call)
        if length > _LONGEST:
            raise UnusableError(f"the answer is longer than {_LONGEST} characters")
    if not finished:
        raise UnusableError("the stream broke off")
    message: Message = {"role": "assistant", "content": None}
    message |= {name: "".join(pieces) for name, pieces in texts.items()}
    if calls:
        message["tool_calls"] = list(calls.values())
    return message, read_usage(usage)


def _add(calls: dict[Any, Message], delta: Message) -> int:
    """Adds a piece of a call to the call that it belongs to; returns its length.

    A server that gives no index sends whole calls.
    """
    function = delta.get("function") or {}
    call = calls.setdefault(delta.get("index", len(calls)), {"type": "function", "function": {}})
    if delta.get("id"):
        call.setdefault("id", delta["id"])
    length = 0
    for name in ("name", "arguments"):
        if isinstance(piece := function.get(name), str):
            call["function"][name] = call["function"].get(name, "") + piece
            length += len(piece)
    return length
