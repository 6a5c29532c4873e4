"""What an answer that is not a completion means: whose fault it is, and whether to ask again.

The words of servers are data, in `server_words.yaml`. What the *server* did wrong says nothing about the model and is
asked again, or leaves the episode unscored. What the *model* did wrong is a `ModelFaultError`: it is scored.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

from fate_gym.chat import Json
from fate_gym.errors import ContextOverflowError, NoReplyError, ProviderError, QuotaError
from fate_gym.serving._waits import asked_wait

LONGEST_ASKED_WAIT = 600.0
"""Seconds. A server that asks to wait longer before it serves again has run out of what the run needs."""

Kind = Literal["malformed_call", "content_filter", "overflow", "quota", "daily", "server_failure"]

Fault = Literal["malformed_call", "content_filter", "endless"]

_RETRIED = {408, 409, 425, 429}
"""With all of 5xx: the same request may succeed later."""

_OVERFLOW_STATUSES = (None, 400, 413, 422, 500)

_EXCERPT = 200
"""Characters of a server's own words that go into an error."""

_READ_WORDS = 4000
"""Characters of a server's own words that are searched."""


class TransientError(Exception):
    """A request failed in a way that may pass.

    Args:
        message: What happened, without secrets.
        retry_after: Seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnreachableError(TransientError):
    """There was no connection, or it broke."""


class UnusableError(TransientError):
    """The server answered, but not with a chat completion."""


class NotFoundError(ProviderError):
    """The server has nothing at this address, or no such model."""


class ModelFaultError(NoReplyError):
    """The model, or a filter on it, gave no answer that could be used; that is scored, and not retried.

    Args:
        kind: What happened: a call that the server could not parse, a filter that stopped the turn, or a reply that
            did not end within the bounds of length and time.
        words: What the server said, without secrets.
        text: What the model had written, as far as it is known.
        usage: The tokens that it took, where they are known.
    """

    def __init__(self, kind: Fault, words: str, text: str = "", usage: Mapping[str, float] | None = None) -> None:
        super().__init__(words)
        self.kind = kind
        self.text = text
        self.usage = dict(usage or {})


@dataclass(frozen=True, slots=True)
class _Entry:
    codes: frozenset[str]
    words: re.Pattern[str] | None
    finish_reasons: tuple[str, ...]


@functools.cache
def _table() -> dict[Kind, _Entry]:
    text = resources.files("fate_gym.serving").joinpath("server_words.yaml").read_text("utf-8")
    return {
        kind: _Entry(
            frozenset(entry["codes"]),
            re.compile("|".join(f"(?:{words})" for words in entry["words"]), re.IGNORECASE) if entry["words"] else None,
            tuple(entry.get("finish_reasons", ())),
        )
        for kind, entry in yaml.safe_load(text).items()
    }


def kind_of_finish(finish_reason: str) -> Kind | None:
    """Returns what an unusual `finish_reason` means, or None for a usual one.

    Some gateways append a category ("content_filter: PROHIBITED_CONTENT"), or put one of their own before it
    ("function_call_filter: MALFORMED_FUNCTION_CALL").
    """
    for part in finish_reason.lower().split(":", 2)[:2]:
        for kind, entry in _table().items():
            if part.strip() in entry.finish_reasons:
                return kind
    return None


@dataclass(frozen=True, slots=True)
class ServerError:
    """An error as a server reports it: with an HTTP status, or inside an answer that began with 200.

    Attributes:
        status: The HTTP status, or the one that the error object names; None where neither is known.
        message: The server's own words, "" if it used none.
        codes: Its codes, types and states, in lower case.
        text: What the model had written (`failed_generation`).
        body: The whole, parsed; None where it is not JSON.
    """

    status: int | None
    message: str
    codes: frozenset[str]
    text: str
    body: Json

    @classmethod
    def read(cls, status: int | None, content: bytes | Json) -> ServerError:
        """Reads the body of an error, or the `error` inside an answer."""
        body = _parsed(content) if isinstance(content, bytes) else content
        first = body[0] if isinstance(body, list) and body else body
        error = first.get("error", first) if isinstance(first, Mapping) else first
        if not isinstance(error, Mapping):
            outer = first if isinstance(first, Mapping) else {}
            message = error if isinstance(error, str) else outer.get("message")
            return cls(status, message if isinstance(message, str) else "", frozenset(), "", body)
        inner, metadata = (
            value if isinstance(value := error.get(name), Mapping) else {} for name in ("innererror", "metadata")
        )
        codes = [error.get("code"), error.get("type"), error.get("status"), inner.get("code")]
        code = error.get("code")
        if status is None and isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)):
            status = int(code)
        # Gateways put the words of the server behind them beside their own.
        parts = [error.get("message"), error.get("detail"), metadata.get("raw"), error.get("param")]
        parts += [_quota_ids(error)]
        return cls(
            status=status,
            message=" ".join(part if isinstance(part, str) else json.dumps(part) for part in parts if part),
            codes=frozenset(str(code).lower() for code in codes if isinstance(code, str | int)),
            text=str(error.get("failed_generation") or ""),
            body=body,
        )

    @property
    def words(self) -> str:
        """The server's own words as one short line."""
        return " ".join(self.message.split())

    def is_a(self, kind: Kind) -> bool:
        """Whether the error is of a kind, by its codes or words."""
        entry = _table()[kind]
        if self.codes & entry.codes:
            return True
        return entry.words is not None and entry.words.search(self.message[:_READ_WORDS]) is not None


def failure(error: ServerError, where: str, headers: Mapping[str, str]) -> Exception:
    """Returns what an error of a server means.

    Args:
        error: The error.
        where: The server's address, without secrets.
        headers: Of the response.

    Returns:
        A `ModelFaultError`, `ContextOverflowError`, `QuotaError`, `TransientError` or `ProviderError`.
    """
    origin = f"HTTP {error.status} from {where}" if error.status else f"{where} broke off its answer"
    line = f"{origin}: {error.words[:_EXCERPT]}" if error.words else origin
    if error.status not in (401, 404, 429):
        # First, since the words of these errors may quote what the model wrote.
        if error.is_a("malformed_call"):
            return ModelFaultError("malformed_call", line, error.text)
        if error.is_a("content_filter"):
            return ModelFaultError("content_filter", line)
    if error.status in _OVERFLOW_STATUSES and error.is_a("overflow"):
        return ContextOverflowError(line)
    wait = asked_wait(headers, error.body, error.message[:_READ_WORDS])
    if error.status in (402, 403, 429, 400, None) and _ends_the_run(error, wait):
        return QuotaError(line)
    if error.status is None or error.status in _RETRIED or error.status >= 500:
        return TransientError(line, wait)
    return NotFoundError(line) if error.status == 404 else ProviderError(line)


def _ends_the_run(error: ServerError, wait: float | None) -> bool:
    """Whether no retry will mend an error within the time that a run can wait."""
    if error.status == 402 or error.is_a("quota"):
        return True
    if wait is not None and wait > LONGEST_ASKED_WAIT:
        return error.status == 429
    return wait is None and error.is_a("daily")


def _parsed(content: bytes) -> Json:
    # A server that was asked for a stream may send its error as an event.
    line = content.strip().removeprefix(b"data:").partition(b"\n\n")[0]
    try:
        value: Json = json.loads(line)
        return value
    except (ValueError, RecursionError):
        return None


def _quota_ids(error: Mapping[str, Json]) -> str:
    """Returns the names of the quotas that Google's QuotaFailure says are used up."""
    details = error.get("details")
    violations = [
        violation
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, Mapping) and isinstance(detail.get("violations"), list)
        for violation in detail["violations"]
    ]
    return " ".join(str(violation.get("quotaId", "")) for violation in violations if isinstance(violation, Mapping))
