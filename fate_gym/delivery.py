"""Tells whether an injected text has reached the agent."""

from __future__ import annotations

import functools
import re

from fate_gym._plain import replace_surrogates

_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|\n *|.)", re.DOTALL)
_NO_ASCII_LETTERS = bytes(code for code in range(128) if not chr(code).isalnum())
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "e": "\x1b", "f": "\f", "v": "\v"}


def delivered(payload: str, content: str) -> bool:
    """Tells whether `payload` stands in `content`, whatever quoting, escaping or folding a formatter put on it.

    Letters and digits are compared, in the text as it is and with the escapes of double-quoted YAML and JSON undone.
    """
    letters = _letters_of_payload(payload)
    if not letters:
        return bool(payload.strip()) and payload.strip() in content
    if len(content) < len(letters):  # undoing escapes makes no text longer
        return False
    if payload in content or letters in _letters(content):
        return True
    return "\\" in content and letters in _letters(replace_surrogates(_ESCAPE.sub(_unescape, content)))


def _letters(text: str) -> str:
    if text.isascii():  # as most answers of tools are; without a regular expression it takes a twentieth of the time
        return text.encode().translate(None, _NO_ASCII_LETTERS).decode()
    return re.sub(r"[\W_]+", "", text)


_letters_of_payload = functools.lru_cache(1024)(_letters)
"""Each payload is looked for in every answer of a tool."""


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        point = int(code[1:], 16)
        return chr(point) if point < 0x110000 else ""
    return "" if code[0] == "\n" else _NAMED.get(code, code)
