"""When a request to a model server is made again, and when not."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fate_gym.errors import ContextOverflowError, NoReplyError, ProviderError
from fate_gym.serving.redaction import Redactor

A = TypeVar("A")
T = TypeVar("T")

_RETRIED = {408, 409, 429}
"""With all of 5xx: the same request may succeed later."""

_OVERFLOW = re.compile(
    # In turn: OpenAI, vLLM and many more; vLLM; llama.cpp; together and TGI; Anthropic and Google behind proxies.
    r"maximum context length|longer than the maximum model length|exceeds? the available context size"
    r"|`?inputs`? tokens \+ `?max_new_tokens`? must be|prompt is too long|input token count .*exceeds the maximum",
    re.IGNORECASE,
)
_OVERFLOW_CODES = {"context_length_exceeded", "exceed_context_size_error"}

_EXCERPT = 200
"""Characters of a server's own words that go into an error."""


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
    """No connection, or one that broke."""


class UnusableError(TransientError):
    """The server answered, but not with a chat completion."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a request is made again.

    Attributes:
        max_attempts: Requests for one reply, the first included.
        backoff_seconds: Bound of the first wait; each further one doubles it. The wait is uniform below its bound
            ("full jitter"), so that sessions that failed together do not come back together.
        longest_seconds: No wait is longer, whatever the server asks for.
    """

    max_attempts: int
    backoff_seconds: float = 1.0
    longest_seconds: float = 60.0

    async def run(self, request: Callable[[A], Coroutine[Any, Any, T]], argument: A) -> tuple[T, int]:
        """Makes a request until it succeeds; returns its result and the number of requests made.

        Args:
            request: A coroutine function.
            argument: What it is called with, each time.

        Raises:
            ProviderError: It failed for good, or too often; with the number of requests.
            ContextOverflowError: From the request; with the number of requests as well.
        """
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            return self.wait(state.attempt_number, getattr(failure, "retry_after", None))

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(self.max_attempts),
            wait=wait,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            result: T = await retrying(request, argument)
        except TransientError as failure:
            raise ProviderError(
                f"gave up after {self.max_attempts} attempts: {failure}", attempts=self.max_attempts
            ) from None
        except NoReplyError as failure:
            failure.attempts = retrying.statistics["attempt_number"]
            raise
        return result, int(retrying.statistics["attempt_number"])

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Returns the seconds to wait after a failed attempt (from 1); at least `retry_after`, up to the longest."""
        bound = self.backoff_seconds * 2 ** (attempt - 1 if retry_after is None else 0)
        jitter = random.uniform(0, bound)  # noqa: S311 (spreads load, guards nothing)
        return min(self.longest_seconds, (retry_after or 0.0) + jitter)


class Pacer:
    """Spaces requests evenly, over all sessions.

    Args:
        per_minute: Requests a minute, or None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Waits for the next free slot."""
        if not self._gap:
            return
        now = time.monotonic()
        slot = max(now, self._next)
        self._next = slot + self._gap
        await asyncio.sleep(slot - now)


def interpret(error: Exception, url: str, redact: Redactor) -> Exception:
    """Returns what an error of the openai package means: `TransientError`, `ContextOverflowError` or `ProviderError`.

    Args:
        error: What the package raised.
        url: The server's address, without secrets.
        redact: Blanks secrets.
    """
    import openai

    # aiohttp's transport reports a refused connection as one that took too long.
    unconnected = type(error.__cause__).__name__ == "ConnectTimeout"
    if isinstance(error, TimeoutError | openai.APITimeoutError) and not unconnected:
        return TransientError(f"{url} did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return UnreachableError(redact(f"no connection to {url}: {error.__cause__ or error}"))
    if not isinstance(error, openai.APIError):
        # What is left comes from reading the body: broken JSON, a broken stream.
        return UnusableError(f"{url} sent a broken answer ({type(error).__name__})")
    said = _words(error, redact)
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    line = f"HTTP {status} from {url}{said}" if status else f"{url} broke off its answer{said}"
    if status in (None, 400, 413, 500) and _overflows(error):
        return ContextOverflowError(line)
    if error.code == "insufficient_quota":
        # A 429 like any other, but only money ends it.
        return ProviderError(line)
    if status is None or status in _RETRIED or status >= 500:
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        return TransientError(line, retry_after(headers))
    return ProviderError(line)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Reads how long a server asks to wait, in seconds from now, or None.

    `Retry-After` holds seconds or an HTTP date (RFC 9110, 10.2.3); OpenAI adds `retry-after-ms`.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            return float(value) * unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _overflows(error: Any) -> bool:
    kinds = {error.code, error.type}
    return bool(kinds & _OVERFLOW_CODES) or bool(_OVERFLOW.search(f"{error.message} {error.body}"))


def _words(error: Any, redact: Redactor) -> str:
    """The server's own words as one short line; an HTML page says nothing."""
    body = error.body if isinstance(error.body, Mapping) else {}
    text = body.get("message") or body.get("detail") or ""
    # Blanked before it is cut: half a key is still a part of it.
    line = " ".join(redact(str(text)).split())
    return f": {line[:_EXCERPT]}" if line else ""
