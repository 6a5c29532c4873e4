"""Renders an episode as text for people.

What an agent or a tool wrote is made visible, so that it cannot act on a terminal.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from fate_gym.chat import Message
from fate_gym.rewards import AXES, Verdict
from fate_gym.transcript import Transcript

_INDENT = "    "
_MARKS = 4
"""Combining marks on one character that are let through: no script stacks more, and a flood covers other lines."""

# Almost all text is plain, and needs no look at each of its characters.
_NOT_PLAIN = re.compile(r"[^\n\t\x20-\x7e]+")
_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Unicode's default-ignorable and blank characters whose category does not give them away.
_BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800"
    r"\u3164\ufe00-\ufe0f\uffa0\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def render_transcript(transcript: Transcript, verdict: Verdict | None) -> str:
    """Renders an episode, with its verdict once it is over."""
    axes = None if verdict is None else verdict.to_json()
    return render_episode(transcript.messages, transcript.ended, axes)


def render_episode(messages: Iterable[Message], ended: str | None, axes: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Renders a conversation and, if there is one, its verdict as `Verdict.to_json` gives it."""
    blocks = [_message(message) for message in messages]
    if ended is not None:
        blocks.append(f"ended: {visible_line(ended)}")
    if axes is not None:
        blocks.append("\n".join(_axis(name, axes[name]) for name in AXES))
    return visible("\n\n".join(blocks))


def visible(text: str) -> str:
    r"""Names every character that a reader would not see or that would command a terminal, as `\x1b` or `\u202e`.

    These are control characters and escapes, marks that turn the direction of text, characters without width, lone
    surrogates, blanks that look like spaces, and combining marks beyond a few on one character. Line feeds and tabs
    stay.
    """
    return _NOT_PLAIN.sub(lambda match: _named(match[0]), text)


def visible_line(text: str) -> str:
    """Does what `visible` does, and names line feeds and tabs too, so that a text cannot forge lines of its own."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _named(run: str) -> str:
    named, marks, symbol = [], 0, False
    for char in run:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        hidden = category in _INVISIBLE_CATEGORIES or marks > _MARKS or _BLANK.match(char) is not None
        # After a symbol this variation selector is how emoji are spelt; elsewhere it is a way to hide text.
        named.append(_escape(char) if hidden and not (symbol and char == "\ufe0f") else char)
        symbol = category in ("So", "Sm")
    return "".join(named)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _message(message: Message) -> str:
    role = message["role"]
    title = f"tool · {message['tool_call_id']}" if role == "tool" else role
    lines = [f"[{visible_line(title)}]"]
    content = message.get("content") or ""
    if content.strip():
        lines += [_INDENT + line for line in content.strip("\n").split("\n")]
    for call in message.get("tool_calls", ()):
        name, arguments = call["function"]["name"], _arguments(call["function"]["arguments"])
        lines.append(_INDENT + visible_line(f"-> {name}({arguments})  [{call['id']}]"))
    return "\n".join(lines)


def _arguments(text: str) -> str:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        # An environment writes JSON objects only; a stranger's run may hold anything.
        return text
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _axis(name: str, axis: Mapping[str, Any]) -> str:
    value = f"{axis['value']:.2f}" if axis["active"] else "  - "
    line = f"{name:<20} {value}  {visible_line(axis['rule'])}"
    details = list(axis.get("evidence", ()))
    if "error" in axis:
        details.append(axis["error"])
    return "\n".join([line, *(f"{_INDENT}{visible_line(detail)}" for detail in details)])
