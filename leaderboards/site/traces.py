"""An episode as its page shows it: the chat, the calls with their answers, what was injected, and the verdict."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from fate_gym.episode import Episode
from fate_gym.leaderboards.site.text import Budget, short
from fate_gym.locate import locate
from fate_gym.rewards import AxisVerdict

MOST_ENTRIES: Final = 250
"""Messages of a page, and likewise calls; the rest is counted."""

_MOST_EVIDENCE: Final = 25
_MOST_CHANGES: Final = 60
_MOST_INJECTIONS: Final = 20
_SEARCHED: Final = 200_000
"""Characters of a tool's output in which injected texts are looked for."""

_NAMES_CALL: Final = re.compile(r"\bcall ([^\s:()]+)")
_CHANGED: Final = re.compile(r"([-+]) ([^\n]{1,300}?): (.*)", re.DOTALL)
"""A line of evidence that says what a part of the state was, or became."""

_AROUND: Final = 300
"""Characters that stand open before and after an injected text; what is beyond unfolds."""


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

    @property
    def folded(self) -> tuple[str, tuple[Piece, ...], str]:
        """The text in three parts, (before, around, after): around is what an injected text makes worth reading."""
        marked = [i for i, piece in enumerate(self.pieces) if piece.injected]
        if not marked:
            return "", self.pieces, ""
        first, last = marked[0], marked[-1]
        before = "".join(piece.text for piece in self.pieces[:first])
        after = "".join(piece.text for piece in self.pieces[last + 1 :])
        head, tail = _cut_at_line(before, from_end=True), _cut_at_line(after, from_end=False)
        around = (Piece(before[head:], False), *self.pieces[first : last + 1], Piece(after[:tail], False))
        return before[:head], around, after[tail:]


@dataclass(slots=True)
class Call:
    """A tool call with its answer.

    Attributes:
        number: From 1, in order; makes its anchor.
        id: As the agent gave it.
        name: The tool.
        gist: Its arguments on one line, cut.
        arguments: All of them; None where the gist is all.
        outcome: What became of it; None if the episode does not say.
        answer: The tool's output; None if there is none.
        serves: Axes whose evidence names the call.
        obeyed: Whether it did what an injected text, or a harmful request, asked for: the verdict on security names it.
    """

    number: int
    id: str
    name: str
    gist: str
    arguments: Text | None
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


@dataclass(slots=True)
class Change:
    """One part of the state: what it was and what it became; None where it was not there."""

    path: str
    before: Text | None = None
    after: Text | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """All that a trace page shows of an episode's texts.

    Attributes:
        changes: What differs between the state before and after, as far as the verdict says.
        injections: (where, text).
        entries: The messages.
        messages_left_out: Number of messages that are not shown.
        calls_left_out: Number of calls that are not.
        axes: The verdict.
        error: What went wrong, for an episode without score.
        first_injected: Number of the call whose answer first held an injected text; None if none is seen to.
    """

    changes: tuple[Change, ...]
    injections: tuple[tuple[str, Text], ...]
    entries: tuple[Entry, ...]
    messages_left_out: int
    calls_left_out: int
    axes: tuple[AxisView, ...]
    error: Text | None
    first_injected: int | None


def trace(episode: Episode, budget: Budget | None = None) -> Trace:
    """Makes the view of an episode.

    Args:
        episode: The episode.
        budget: What its texts may take; that of a whole page by default.
    """
    budget = budget or Budget()
    # The verdict first: whatever is cut, it is not.
    numbers = _numbers(episode)
    axes = tuple(_axis(name, axis, numbers, budget) for name, axis in episode.verdict.axes.items())
    error = None if episode.error is None else _text(episode.error, (), budget)
    listed = list(episode.injections.items())[:_MOST_INJECTIONS]
    injections = tuple((where, _text(text, (), budget)) for where, text in listed)
    changes = _changes(episode, budget)
    reader = _Reader(episode, budget)
    entries = tuple(reader.entries())
    first = next((call.number for call in reader.calls if call.answer and call.answer.injected), None)
    _mark(reader.calls, episode, axes, first)
    return Trace(
        changes=changes,
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
        # Where none has reached the agent there is none to look for.
        self._payloads = tuple(episode.injections.values())[:_MOST_INJECTIONS] if episode.injection_reached else ()
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
        line = " ".join(arguments[:500].split())
        whole = len(arguments) <= 160 and "\n" not in arguments
        call = Call(
            number=number,
            id=short(requested["id"], 80),
            name=short(requested["function"]["name"], 120),
            gist=short(line, 160),
            arguments=None if whole else _text(_indented(arguments), (), self._budget),
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


def _changes(episode: Episode, budget: Budget) -> tuple[Change, ...]:
    """Joins the lines of evidence before and after by the part of the state that they are of."""
    changes: dict[tuple[str, int], Change] = {}
    counts: Counter[tuple[str, str]] = Counter()
    lines = dict.fromkeys(line for axis in episode.verdict.axes.values() for line in axis.evidence)
    for match in islice(filter(None, map(_CHANGED.fullmatch, lines)), _MOST_CHANGES):
        sign, path, value = match.groups()
        # Entries without a name of their own share a path: the first that went stands beside the first that came.
        counts[sign, path] += 1
        change = changes.setdefault((path, counts[sign, path]), Change(short(path, 120)))
        text = _text(_plain(value), (), budget, longest=2_000)
        change.before, change.after = (text, change.after) if sign == "-" else (change.before, text)
    return tuple(changes.values())


def _plain(value: str) -> str:
    """Writes a record of plain values, which evidence holds as JSON, as people write one."""
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(record, dict) or any(isinstance(entry, dict | list) and entry for entry in record.values()):
        return value
    return " · ".join(f"{name}: {entry}" for name, entry in record.items() if entry not in ([], {}))


def _axis(name: str, axis: AxisVerdict, numbers: Mapping[str, int], budget: Budget) -> AxisView:
    lines = [line for line in axis.evidence if not _CHANGED.fullmatch(line)]
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
    """Marks the calls that evidence names, and those that did what they should not have.

    A call before the injected text entered obeyed nothing, whatever the evidence says of it.
    """
    serves: defaultdict[int, list[str]] = defaultdict(list)
    for axis in axes:
        for line in axis.evidence:
            if line.call is not None and axis.name not in serves[line.call]:
                serves[line.call].append(axis.name)
    security = episode.verdict.security
    harmed = security.active and security.value < 1
    entered = first if first is not None else 0 if episode.injections and episode.injection_reached else None
    since = {"attacked": entered, "harmful": 0}.get(episode.mode)
    for call in calls:
        call.serves = serves[call.number]
        call.obeyed = harmed and since is not None and call.number > since and "security" in call.serves


def _cut_at_line(text: str, *, from_end: bool) -> int:
    """Where to fold a text so that about `_AROUND` characters stand open, at the end of a line if there is one."""
    if len(text) <= 2 * _AROUND:
        return 0 if from_end else len(text)
    if from_end:
        line = text.find("\n", len(text) - _AROUND)
        return line + 1 if line >= 0 else len(text) - _AROUND
    line = text.rfind("\n", 0, _AROUND)
    return line if line > 0 else _AROUND


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
