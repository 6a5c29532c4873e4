"""Where an injected text stands in a tool's output, whatever quoting, escaping or folding a formatter put on it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from fate_gym.delivery import delivered

_LETTERS: Final = re.compile(r"[^\W_]+")
# Escapes of double-quoted YAML and JSON, as `fate_gym.delivery` undoes them.
_LETTERS_AND_ESCAPES: Final = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|[^\W_]+", re.DOTALL)
_NAMED: Final = "ntr0abefv"
_TRIES: Final = 50

Span = tuple[int, int]
Run = tuple[str, int, int]
"""Letters that stand together, and where: (letters, start, end); an escape is a run of the letter it stands for."""


def locate(payload: str, content: str) -> list[Span]:
    """Returns where a payload stands, as (start, end) in order; the rule is that of `fate_gym.delivery.delivered`.

    Args:
        payload: The injected text.
        content: The text of a tool message.
    """
    words = _LETTERS.findall(payload)
    if not words:
        literal = payload.strip()
        return [match.span() for match in re.finditer(re.escape(literal), content)] if literal else []
    wanted = "".join(words)
    if len(content) < len(wanted):
        return []
    found = _near(words[0], wanted, content, _LETTERS) or _near(words[0], wanted, content, _LETTERS_AND_ESCAPES)
    # That nothing is there is quicker to tell than where it would be.
    if not found and delivered(payload, content):
        found = _anywhere(wanted, content, _LETTERS) or _anywhere(wanted, content, _LETTERS_AND_ESCAPES)
    return [_with_signs(span, payload.strip(), content) for span in found]


def _with_signs(span: Span, payload: str, content: str) -> Span:
    """Widens a place by the signs before the payload's first letter and behind its last, where they stand there too."""
    start, end = span
    letters = [match.span() for match in _LETTERS.finditer(payload)]
    before, behind = payload[: letters[0][0]], payload[letters[-1][1] :]
    return (
        start - len(before) if content.endswith(before, 0, start) else start,
        end + len(behind) if content.startswith(behind, end) else end,
    )


def _near(first: str, wanted: str, content: str, pattern: re.Pattern[str]) -> list[Span]:
    """Looks from where the payload's first word stands; finds almost all, and fast."""
    spans = []
    at = content.find(first)
    for _ in range(_TRIES):
        if at < 0:
            break
        end = _follow(wanted, content, pattern, at)
        if end is not None:
            spans.append((at, end))
        at = content.find(first, end or at + 1)
    return spans


def _follow(wanted: str, content: str, pattern: re.Pattern[str], at: int) -> int | None:
    """Reads the wanted letters from a place on; returns where they end, None if others come."""
    read = 0
    for letters, start, end in _runs(content, pattern, at):
        left = len(wanted) - read
        if left <= len(letters):
            last = start + left if end - start == len(letters) else end
            return last if letters[:left] == wanted[read:] else None
        if not wanted.startswith(letters, read):
            return None
        read += len(letters)
    return None


def _anywhere(wanted: str, content: str, pattern: re.Pattern[str]) -> list[Span]:
    """Looks in all letters, however they are torn apart."""
    runs = [run for run in _runs(content, pattern, 0) if run[0]]
    joined = "".join(letters for letters, _, _ in runs)
    starts = [0]
    for letters, _, _ in runs:
        starts.append(starts[-1] + len(letters))

    def place(index: int) -> Span:
        """The first and the last character that stand for a letter."""
        i = bisect_right(starts, index) - 1
        letters, start, end = runs[i]
        if end - start != len(letters):
            return start, end
        return start + index - starts[i], start + index - starts[i] + 1

    spans = []
    at = joined.find(wanted)
    while at >= 0:
        spans.append((place(at)[0], place(at + len(wanted) - 1)[1]))
        at = joined.find(wanted, at + len(wanted))
    return spans


def _runs(content: str, pattern: re.Pattern[str], at: int) -> Iterator[Run]:
    for match in pattern.finditer(content, at):
        text = match[0]
        yield (_unescaped(text[1:]) if text[0] == "\\" else text), match.start(), match.end()


def _unescaped(code: str) -> str:
    if code[0] in "xuU" and len(code) > 1:
        point = int(code[1:], 16)
        char = chr(point) if point < 0x110000 else ""
    else:
        char = "" if code in _NAMED else code
    return char if _LETTERS.fullmatch(char) else ""
