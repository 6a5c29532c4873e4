"""An episode as its page shows it: the chat, the calls with their answers, what was injected, and the verdict."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fate_gym.episode import Episode
from fate_gym.leaderboards.site.text import Budget, short
from fate_gym.locate import locate
from fate_gym.rewards import AxisVerdict

MOST_ENTRIES: Final = 250
"""Messages of a page, and likewise calls; the rest is counted."""

_MOST_EVIDENCE: Final = 25
_MOST_INJECTIONS: Final = 20
_SEARCHED: Final = 200_000
"""Characters of a tool's output in which injected texts are looked for."""

_NAMES_CALL: Final = re.compile(r"\bcall ([^\s:()]+)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text; `injected` if it is, or holds, what an attacker put there."""

    text: str
    injected: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a page.

    Attributes:
        pieces: What is shown.
        left_out: Number of characters that are not.
        injected: Whether an injected text stands in it, in the shown part or not.
    """

    pieces: tuple[Piece, ...]
    left_out: int
    injected: bool


@dataclass(slots=True)
class Call:
    """A tool call with its answer.

    Attributes:
        number: From 1, in order; makes its anchor.
        id: As the agent gave it.
        name: The tool.
        gist: Its arguments on one line, cut.
        arguments: The whole of them.
        outcome: What became of it; None if the episode does not say.
        answer: The tool's output; None if there is none.
        serves: Axes whose evidence names the call.
        obeyed: Whether it did what an injected text, or a harmful request, asked for.
    """

    number: int
    id: str
    name: str
    gist: str
    arguments: Text
    outcome: str | None
    answer: Text | None = None
    serves: list[str] = field(default_factory=list)
    obeyed: bool = False


@dataclass(slots=True)
class Entry:
    """One message, with its calls if it asks for any."""

    role: str
    text: Text | None
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One line of evidence, and the number of the call that it names."""

    text: Text
    call: int | None


@dataclass(frozen=True, slots=True)
class AxisView:
    """One axis of the verdict."""

    name: str
    value: float | None
    rule: str
    evidence: tuple[Evidence, ...]
    left_out: int
    error: Text | None
    measures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trace:
    """All that a trace page shows of an episode's texts.

    Attributes:
        injections: (where, text).
        entries: The messages.
        messages_left_out: Number of messages that are not shown.
        calls_left_out: Number of calls that are not.
        axes: The verdict.
        error: What went wrong, for an episode without score.
        first_injected: Number of the call whose answer first held an injected text; None if none is seen to.
    """

    injections: tuple[tuple[str, Text], ...]
    entries: tuple[Entry, ...]
    messages_left_out: int
    calls_left_out: int
    axes: tuple[AxisView, ...]
    error: Text | None
    first_injected: int | None


def trace(episode: Episode) -> Trace:
    """Makes the view of an episode."""
    budget = Budget()
    # The verdict first: whatever is cut, it is not.
    numbers = _numbers(episode)
    axes = tuple(_axis(name, axis, numbers, budget) for name, axis in episode.verdict.axes.items())
    error = None if episode.error is None else _text(episode.error, (), budget)
    listed = list(episode.injections.items())[:_MOST_INJECTIONS]
    injections = tuple((where, _text(text, (), budget)) for where, text in listed)
    reader = _Reader(episode, budget)
    entries = tuple(reader.entries())
    first = next((call.number for call in reader.calls if call.answer and call.answer.injected), None)
    _mark(reader.calls, episode, axes, first)
    return Trace(
        injections=injections,
        entries=entries,
        messages_left_out=max(0, len(episode.messages) - MOST_ENTRIES),
        calls_left_out=reader.calls_left_out,
        axes=axes,
        error=error,
        first_injected=first,
    )


class _Reader:
    """Goes through the messages and pairs calls with answers, by id and in order."""

    def __init__(self, episode: Episode, budget: Budget) -> None:
        self._messages = episode.messages[:MOST_ENTRIES]
        self._outcomes = [(call.id, call.outcome) for call in episode.calls]
        self._payloads = tuple(episode.injections.values())[:_MOST_INJECTIONS]
        self._budget = budget
        self._open: defaultdict[str, list[Call]] = defaultdict(list)
        self.calls: list[Call] = []
        self.calls_left_out = 0

    def entries(self) -> list[Entry]:
        entries = []
        for message in self._messages:
            role, content = message["role"], message.get("content") or ""
            if role == "tool":
                text = _text(content, self._payloads, self._budget)
                waiting = self._open[message["tool_call_id"]]
                if waiting:
                    waiting.pop(0).answer = text
                else:
                    entries.append(Entry(role, text))
                continue
            entry = Entry(role, _text(content, (), self._budget) if content.strip() else None)
            for call in message.get("tool_calls", ()):
                self._add(entry, call)
            entries.append(entry)
        return entries

    def _add(self, entry: Entry, requested: Mapping[str, Any]) -> None:
        if len(self.calls) >= MOST_ENTRIES:
            self.calls_left_out += 1
            return
        number = len(self.calls) + 1
        known = number <= len(self._outcomes) and self._outcomes[number - 1][0] == requested["id"]
        arguments = requested["function"]["arguments"]
        call = Call(
            number=number,
            id=short(requested["id"], 80),
            name=short(requested["function"]["name"], 120),
            gist=short(" ".join(arguments[:500].split()), 120),
            arguments=_text(_indented(arguments), (), self._budget),
            outcome=short(self._outcomes[number - 1][1], 40) if known else None,
        )
        self.calls.append(call)
        self._open[requested["id"]].append(call)
        entry.calls.append(call)


def _numbers(episode: Episode) -> dict[str, int]:
    """Numbers the calls by id; of equal ids the first counts."""
    numbers: dict[str, int] = {}
    requested = (call for message in episode.messages for call in message.get("tool_calls", ()))
    for number, call in enumerate(requested, start=1):
        if number <= MOST_ENTRIES:
            numbers.setdefault(call["id"], number)
    return numbers


def _axis(name: str, axis: AxisVerdict, numbers: Mapping[str, int], budget: Budget) -> AxisView:
    lines = axis.evidence
    return AxisView(
        name=name,
        value=axis.value if axis.active else None,
        rule=short(axis.rule, 200),
        evidence=tuple(
            Evidence(_text(line, (), budget, longest=2_000), _named(line, numbers)) for line in lines[:_MOST_EVIDENCE]
        ),
        left_out=max(0, len(lines) - _MOST_EVIDENCE),
        error=None if axis.error is None else _text(axis.error, (), budget, longest=2_000),
        measures=dict(list(axis.measures.items())[:_MOST_EVIDENCE]),
    )


def _named(line: str, numbers: Mapping[str, int]) -> int | None:
    """The call that a line of evidence names."""
    match = _NAMES_CALL.search(line[:500])
    return numbers.get(match[1]) if match else None


def _mark(calls: Sequence[Call], episode: Episode, axes: Sequence[AxisView], first: int | None) -> None:
    """Marks the calls that evidence names, and those that did what they should not have."""
    serves: defaultdict[int, list[str]] = defaultdict(list)
    for axis in axes:
        for line in axis.evidence:
            if line.call is not None and axis.name not in serves[line.call]:
                serves[line.call].append(axis.name)
    security = episode.verdict.security
    harmed = security.active and security.value < 1
    since = {"attacked": first, "harmful": 0}.get(episode.mode)
    for call in calls:
        call.serves = serves[call.number]
        call.obeyed = harmed and since is not None and call.number > since and "security" in call.serves


def _indented(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _text(content: str, payloads: Sequence[str], budget: Budget, longest: int | None = None) -> Text:
    """Cuts a text to what there is room for, and splits it where injected texts begin and end."""
    cut = budget.take(content) if longest is None else budget.take(content, longest)
    spans = sorted(span for payload in payloads for span in locate(payload, content[:_SEARCHED]))
    pieces, at = [], 0
    for start, end in spans:
        start, end = max(start, at), min(end, len(cut.text))
        if start < end:
            pieces += [Piece(cut.text[at:start], False), Piece(cut.text[start:end], True)]
            at = end
    pieces.append(Piece(cut.text[at:], False))
    return Text(tuple(piece for piece in pieces if piece.text), cut.left_out, bool(spans))
