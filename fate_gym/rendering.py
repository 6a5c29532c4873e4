"""An episode as text that a person reads. Whatever an agent or a tool wrote is shown, and can do nothing."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping

from fate_gym.chat import Json, Message
from fate_gym.rewards import AXES, Verdict
from fate_gym.transcript import Transcript

_INDENT = "    "
_NOT_PLAIN = re.compile(r"[^\n\t\x20-\x7e]")


def render_transcript(transcript: Transcript, verdict: Verdict | None) -> str:
    """Renders an episode, with its verdict once it is over."""
    axes = None if verdict is None else verdict.to_json()
    return render_episode(transcript.messages, transcript.ended, axes)


def render_episode(messages: Iterable[Message], ended: str | None, axes: Mapping[str, Json] | None) -> str:
    """Renders a conversation and, if there is one, its verdict as `Verdict.to_json` gives it."""
    blocks = [_message(message) for message in messages]
    if ended is not None:
        blocks.append(f"ended: {visible(ended)}")
    if axes is not None:
        blocks.append("\n".join(_axis(name, axes[name]) for name in AXES))
    return "\n\n".join(blocks)


def visible(text: str) -> str:
    """Makes control, bidirectional and other invisible characters visible, so that none reaches a reader unseen."""
    # Almost all text is plain, and needs no look at each of its characters.
    return _NOT_PLAIN.sub(lambda match: _escaped(match[0]), text)


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    return f"\\u{ord(char):04x}" if ord(char) > 0xFF else f"\\x{ord(char):02x}"


def _message(message: Message) -> str:
    role = message["role"]
    title = f"tool · {message['tool_call_id']}" if role == "tool" else role
    lines = [f"[{visible(title)}]"]
    content = message.get("content") or ""
    if content.strip():
        lines += [_INDENT + line for line in visible(content).strip("\n").split("\n")]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        lines.append(f"{_INDENT}-> {visible(function['name'])}({_arguments(function['arguments'])})  [{call['id']}]")
    return "\n".join(lines)


def _arguments(text: str) -> str:
    arguments = json.loads(text)
    return visible(", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items()))


def _axis(name: str, axis: Mapping[str, Json]) -> str:
    value = f"{axis['value']:.2f}" if axis["active"] else "  - "
    line = f"{name:<20} {value}  {visible(axis['rule'])}"
    details = list(axis.get("evidence", ()))
    if "error" in axis:
        details.append(axis["error"])
    return "\n".join([line, *(f"{_INDENT}{visible(detail)}" for detail in details)])
