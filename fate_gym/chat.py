"""The one chat format: OpenAI chat messages and tool schemas as plain dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""A JSON value. Its lists and objects are read-only types, so that a `list[str]` is one as well."""

Message: TypeAlias = dict[str, Any]
"""A chat message: `role`, `content`, and `tool_calls` or `tool_call_id` where they belong."""

ToolSchema: TypeAlias = dict[str, Any]
"""A tool as the API takes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

EMPTY_ANSWER = "(no answer)"
"""Stands in the conversation where an assistant message held nothing, since APIs refuse an empty one."""


def copy_messages(messages: list[Message]) -> list[Message]:
    """Copies a conversation so that no one outside can change ours; much faster than `copy.deepcopy`."""
    copies = []
    for message in messages:
        twin = dict(message)
        if "tool_calls" in twin:
            twin["tool_calls"] = [{**call, "function": dict(call["function"])} for call in twin["tool_calls"]]
        copies.append(twin)
    return copies
