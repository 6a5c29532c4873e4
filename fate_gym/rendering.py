"""Renders an episode as text for people.

What an agent or a tool wrote is made visible, so that it cannot act on a terminal.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fate_gym.chat import Message
from fate_gym.rewards import AxisVerdict, Verdict

if TYPE_CHECKING:
    from fate_gym.episode import Episode

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


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """What people are shown of an episode, while it runs and afterwards.

    Attributes:
        title: Its task or its key.
        facts: Further lines of its head.
        injections: Vector -> injected text.
        reached: Whether an injected text has stood in a tool message.
        messages: The conversation.
        ended: Why the episode is over, None while it runs.
        verdict: None while it runs.
    """

    title: str
    facts: tuple[str, ...]
    injections: Mapping[str, str]
    reached: bool
    messages: Sequence[Message]
    ended: str | None
    verdict: Verdict | None

    @classmethod
    def of(cls, episode: Episode) -> EpisodeView:
        """Makes the view of a finished episode."""
        facts = [f"seed {episode.seed}, status {episode.status}"]
        return cls(
            title=episode.key,
            facts=(*facts, f"error: {episode.error}") if episode.error else (*facts,),
            injections=episode.injections,
            reached=episode.injection_reached,
            messages=episode.messages,
            ended=episode.ended,
            verdict=episode.verdict,
        )

    def to_text(self) -> str:
        """Renders it as text for a terminal, whatever is in it."""
        head = [self.title, *self.facts]
        for vector, text in self.injections.items():
            head.append(f"injected at {vector} ({'reached' if self.reached else 'not reached'}):")
            head += [_INDENT + line for line in text.strip().split("\n")]
        blocks = ["\n".join(map(visible_line, head)), *map(message_text, self.messages)]
        if self.ended is not None:
            blocks.append(f"ended: {visible_line(self.ended)}")
        if self.verdict is not None:
            blocks.append("\n".join(_axis(name, axis) for name, axis in self.verdict.axes.items()))
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


def message_text(message: Message) -> str:
    """Renders a message: its role on a line of its own, what it says and its calls indented below."""
    role = message["role"]
    title = f"tool · {message['tool_call_id']}" if role == "tool" else role
    lines = [f"[{visible_line(title)}]"]
    content = message.get("content") or ""
    if content.strip():
        lines += [_INDENT + line for line in content.strip("\n").split("\n")]
    for call in message.get("tool_calls", ()):
        name, arguments = call["function"]["name"], readable_arguments(call["function"]["arguments"])
        lines.append(_INDENT + visible_line(f"-> {name}({arguments})  [{call['id']}]"))
    return "\n".join(lines)


def readable_arguments(text: str) -> str:
    """Renders the arguments of a call, JSON, as `name=value, ...`."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        # An environment writes JSON objects only; a stranger's run may hold anything.
        return text
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _axis(name: str, axis: AxisVerdict) -> str:
    value = f"{axis.value:.2f}" if axis.active else "  - "
    details = [*axis.evidence, *([axis.error] if axis.error is not None else [])]
    lines = [f"{name:<20} {value}  {visible_line(axis.rule)}"]
    return "\n".join([*lines, *(f"{_INDENT}{visible_line(detail)}" for detail in details)])
