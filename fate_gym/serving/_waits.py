"""How long a server asks to wait, wherever it says so."""

from __future__ import annotations

import datetime
import email.utils
import functools
import math
import re
import time
from collections.abc import Iterator, Mapping

from fate_gym.chat import Json

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONG_UNITS = r"milliseconds?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?"
_PART = re.compile(rf"(\d+(?:\.\d+)?)\s*(ms|{_LONG_UNITS}|[smhd])(?![a-z])", re.IGNORECASE)
_DURATION = rf"(?:\d+(?:\.\d+)?\s*(?:ms|{_LONG_UNITS}|[smhd])(?![a-z])\s*(?:and\s+|,\s*)?)+"
_WORDS = re.compile(rf"(?:try again|retry|wait|available again|reset\w*)\b[^\d]{{0,40}}?({_DURATION})", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_RESETS = ("requests", "tokens", "input-tokens", "output-tokens")
"""What providers limit, each with a header for what remains and one for when it is full again."""

_EPOCH = 1e9
"""A larger number of seconds (since 2001) is a point in time, not a duration."""


def asked_wait(headers: Mapping[str, str], body: Json, words: str) -> float | None:
    """Reads how long a server asks to wait, in seconds from now; None if it asks for nothing.

    The places are tried in this order: `retry-after-ms` (OpenAI), `Retry-After` (RFC 9110, 10.2.3: seconds or a date;
    also with a unit), `retryDelay` in the body (google.rpc.RetryInfo), the words of the message ("try again in
    6m0s"), and `x-ratelimit-reset-*` (OpenAI, Groq, Anthropic, GitHub: a duration, a date, or a point in time).

    Args:
        headers: Of the response, with case-insensitive names.
        body: Of the response, parsed; None where it is not JSON.
        words: The message of the error.
    """
    places = (
        functools.partial(_from_header, headers),
        functools.partial(_from_body, body),
        functools.partial(_from_words, words),
        functools.partial(_from_resets, headers),
    )
    return next((wait for place in places if (wait := place()) is not None), None)


def _from_header(headers: Mapping[str, str]) -> float | None:
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _PLAIN_NUMBER.fullmatch(milliseconds):
        return float(milliseconds) * 1e-3
    return read_time(headers.get("retry-after", ""))


def _from_body(body: Json) -> float | None:
    """Looks for a RetryInfo among the details of an error, which Gemini sends within a list."""
    for error in _errors(body):
        details = error.get("details")
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, Mapping) and isinstance(delay := detail.get("retryDelay"), str):
                return read_time(delay)
        for name in ("retry_after", "retry_after_seconds"):
            delay = error.get(name)
            if isinstance(delay, int | float) and not isinstance(delay, bool):
                return _sane(float(delay))
    return None


def _errors(body: Json) -> Iterator[Mapping[str, Json]]:
    """Yields every object that may hold an error: the body, its `error`, the `metadata` of that; of a list, each's."""
    for item in body if isinstance(body, list) else [body]:
        for name in (None, "error", "metadata"):
            item = item.get(name) if name is not None and isinstance(item, Mapping) else item
            if isinstance(item, Mapping):
                yield item


def _from_words(words: str) -> float | None:
    match = _WORDS.search(words)
    return read_time(match[1]) if match else None


def _from_resets(headers: Mapping[str, str]) -> float | None:
    """Reads when a limit that is used up is free again; the latest of them, since all must be."""
    waits = []
    for prefix in ("x-ratelimit", "ratelimit", "anthropic-ratelimit"):
        for kind in _RESETS:
            remaining = headers.get(f"{prefix}-remaining-{kind}") or headers.get(f"{prefix}-{kind}-remaining")
            reset = headers.get(f"{prefix}-reset-{kind}") or headers.get(f"{prefix}-{kind}-reset")
            if reset and (remaining is None or remaining.strip() in ("0", "0.0")):
                waits.append(read_time(reset))
        if headers.get(f"{prefix}-remaining", "0").strip() == "0":
            waits.append(read_time(headers.get(f"{prefix}-reset", "")))
    return max((wait for wait in waits if wait is not None), default=None)


def read_time(text: str) -> float | None:
    """Reads a wait in seconds from now, in any form that servers use; None where the text has none of these forms.

    Forms: "1.5", "1.5s", "6m0s", "120ms", "2 minutes", an HTTP date, an ISO 8601 date, seconds or milliseconds since
    1970.
    """
    text = text.strip()
    if _PLAIN_NUMBER.fullmatch(text):
        number = float(text)
        if number > _EPOCH:
            seconds = number / 1000 if number > 1000 * _EPOCH else number
            return _sane(max(0.0, seconds - time.time()))
        return _sane(number)
    if re.fullmatch(_DURATION, text, re.IGNORECASE):
        parts = [(float(number), unit.lower()) for number, unit in _PART.findall(text)]
        return _sane(sum(number * _UNITS[_short(unit)] for number, unit in parts))
    try:
        return _sane(max(0.0, _date(text).timestamp() - time.time()))
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def _short(unit: str) -> str:
    return "ms" if unit.startswith(("ms", "milli")) else unit[0]


def _date(text: str) -> datetime.datetime:
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return email.utils.parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)


def _sane(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
