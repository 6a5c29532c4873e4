"""Reading chat completions as plain JSON, whole or streamed.

What a *model* does wrong (no text, broken arguments, unknown tools) is left in the message, for the environment to
judge. What a *server* does wrong (no choices, a cut stream, an error within a 200) is raised: it says nothing about
the model.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fate_gym._plain import replace_surrogates
from fate_gym.actions import MOST_CALLS
from fate_gym.chat import Message
from fate_gym.errors import ContextOverflowError
from fate_gym.serving._failures import ModelFaultError, ServerError, UnusableError, failure, kind_of_finish
from fate_gym.serving._redaction import Redactor
from fate_gym.serving._stream import LONGEST_MESSAGE, OutOfBoundsError, StreamedMessage
from fate_gym.serving._usage import read_usage

LARGEST_BODY = 32_000_000
"""Bytes of a whole answer, or of one event of a stream, after decompression: `LONGEST_MESSAGE` with every character
escaped, and room for what servers put around it."""

_DEEPEST = 100
"""Levels of nesting that are kept of what a server puts into a message."""

_EXCERPT = 2_000
"""Characters that are kept of a reply that did not end."""

_SEVERAL = 4
"""Pieces of a stream that tell a model that goes on from a server that has come to a stop."""

_HEAD = 2_000
"""Bytes of an answer in which it must say that it is a completion."""

_TRIED_LINES = 100
"""Lines of an event after each of which it is tried whether it is whole. One of more lines must end by a blank line: to
try after each of a million takes hours, in which no other episode goes on."""

_PIECE = 1_000_000
"""Bytes that are decompressed at a time."""

_DONE = b"[DONE]"

_GZIP_OR_ZLIB = 47
"""`wbits` with which zlib tells the two apart itself."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered.

    Attributes:
        message: The assistant message as the server sent it, without secrets.
        usage: Tokens by name, where they are known; NaN for a count that cannot be true.
        finish_reason: Why the model stopped, in the server's word; None if it gave none.
    """

    message: Message
    usage: dict[str, float]
    finish_reason: str | None = None


def read_completion(body: Any, where: str, redact: Redactor) -> Completion:
    """Reads a whole completion.

    Args:
        body: The answer, parsed.
        where: The server's address, without secrets.
        redact: Blanks secrets.

    Raises:
        UnusableError: It is not a completion.
        TransientError, ProviderError, QuotaError, ContextOverflowError: It holds an error of the server's.
        ModelFaultError: The model's call could not be parsed, a filter stopped the turn, or it is endless.
    """
    if not isinstance(body, Mapping):
        raise UnusableError(f"{where} sent no chat completion")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    choice = choice if isinstance(choice, Mapping) else {}
    message = choice.get("message")
    usage = read_usage(body.get("usage"))
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) and reason else None
    text = message.get("content") if isinstance(message, dict) else None
    error = body.get("error") or choice.get("error")
    if error:
        raise failure(ServerError.read(None, redact_all({"error": error}, redact)), where, {})
    kind = kind_of_finish(reason) if reason else None
    if kind is not None:
        _refuse_finish(
            str(kind), f"{where} ended its answer with finish_reason {reason!r}", redact(str(text or "")), usage
        )
    if not isinstance(choices, list):
        raise UnusableError(f"{where} sent no chat completion")
    if not isinstance(message, dict):
        raise UnusableError(f"{where} sent an answer without a message")
    calls = message.get("tool_calls")
    if isinstance(calls, list) and len(calls) > MOST_CALLS:
        raise ModelFaultError("endless", f"the reply holds more than {MOST_CALLS} calls", usage=usage)
    clean: Message = redact_all(message, redact)
    return Completion(clean, usage, reason)


def _refuse_finish(kind: str, line: str, text: str, usage: dict[str, float]) -> None:
    """Raises what an unusual finish reason means."""
    if kind in ("malformed_call", "content_filter"):
        raise ModelFaultError("malformed_call" if kind == "malformed_call" else "content_filter", line, text, usage)
    if kind == "overflow":
        raise ContextOverflowError(line)
    raise UnusableError(line)


class AnswerReader:
    """Reads the body of an answer as it comes, in bounded memory, and knows how far it has come.

    An answer is known by how it begins, not by its label or by what was asked for: some servers stream whatever is
    asked for, others never do.

    Args:
        where: The server's address, without secrets.
        redact: Blanks secrets.
        clock: Returns seconds, from any beginning.
    """

    def __init__(self, where: str, redact: Redactor, clock: Callable[[], float] = time.monotonic) -> None:
        self._where = where
        self._redact = redact
        self._streamed = StreamedMessage()
        self._clock = clock
        self._grew: deque[float] = deque(maxlen=_SEVERAL)
        self._event = bytearray()
        self._lines = 0

    def is_arriving(self, seconds: float) -> bool:
        """Whether several pieces of the message have come within the last seconds, as far as it is streamed."""
        return len(self._grew) == _SEVERAL and self._clock() - self._grew[0] < seconds

    def endless(self, words: str) -> ModelFaultError:
        """Returns the fault of a model that does not end its reply."""
        usage = read_usage(self._streamed.usage)
        return ModelFaultError("endless", words, self._redact(self._streamed.text()[:_EXCERPT]), usage)

    async def read(self, chunks: AsyncIterator[bytes]) -> Completion:
        """Reads an answer to its end.

        Args:
            chunks: The body, decompressed.

        Raises:
            Exception: As `read_completion` says.
        """
        head = b""
        async for chunk in chunks:
            # Some servers send white space to keep the connection alive while the model works.
            head = chunk.lstrip()
            if head:
                break
        if head[:1] in (b"{", b"["):
            return await self._read_whole(head, chunks)
        try:
            return await self._read_stream(head, chunks)
        except OutOfBoundsError:
            raise self.endless(f"the reply is longer than {LONGEST_MESSAGE} characters or {MOST_CALLS} calls") from None

    async def _read_whole(self, head: bytes, chunks: AsyncIterator[bytes]) -> Completion:
        body = bytearray(head)
        async for chunk in chunks:
            body += chunk
            if len(body) > LARGEST_BODY:
                raise self._out_of_bounds(body, f"is longer than {LARGEST_BODY} bytes")
        try:
            parsed = _parse(bytes(body))
        except RecursionError:
            raise self._out_of_bounds(body, "is nested too deeply") from None
        if len(body) > LONGEST_MESSAGE and len(repr(parsed)) > LONGEST_MESSAGE:
            raise self._out_of_bounds(body, f"is longer than {LONGEST_MESSAGE} characters")
        return read_completion(parsed, self._where, self._redact)

    async def _read_stream(self, head: bytes, chunks: AsyncIterator[bytes]) -> Completion:
        """Reads server-sent events, each with one chunk of a completion."""
        pending = bytearray()
        async for chunk in _and_end(head, chunks):
            pending += chunk
            if b"\n" not in chunk:
                if len(pending) > LARGEST_BODY:
                    raise self._out_of_bounds(pending, f"has an event of more than {LARGEST_BODY} bytes")
                continue
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                if self._add_line(bytes(line).strip()) or self._streamed.error:
                    return self._end(done=True)
        return self._end(done=False)

    def _add_line(self, line: bytes) -> bool:
        """Adds a line to the event that it belongs to; returns whether it says that the stream is over."""
        if not line and self._event and not self._end_event():
            raise UnusableError(f"{self._where} sent a broken event")
        if not line.startswith(b"data:"):
            return False
        self._event += line[5:].strip()
        self._lines += 1
        if self._event == _DONE:
            return True
        if len(self._event) > LARGEST_BODY:
            raise self._out_of_bounds(self._event, f"has an event of more than {LARGEST_BODY} bytes")
        # An event usually is one line. One without a blank line after it is an event all the same.
        if self._event and self._lines <= _TRIED_LINES:
            self._end_event()
        return False

    def _end_event(self) -> bool:
        """Adds the event to the message, if its lines so far are a whole one; returns whether they are."""
        try:
            try:
                chunk = _parse(bytes(self._event))
            except UnusableError:
                return False
            if not isinstance(chunk, Mapping):
                raise UnusableError(f"{self._where} sent an event that is not a chunk of a completion")
            length = self._streamed.length
            self._streamed.add(chunk)
        except RecursionError:
            raise self._out_of_bounds(self._event, "is nested too deeply") from None
        if self._streamed.length > length:
            self._grew.append(self._clock())
        self._event.clear()
        self._lines = 0
        return True

    def _end(self, *, done: bool) -> Completion:
        streamed = self._streamed
        if not streamed.begun and streamed.error is None:
            raise UnusableError(f"{self._where} sent no chat completion")
        if not done and streamed.finish_reason is None and streamed.error is None:
            raise UnusableError(f"{self._where} broke off its stream")
        choice = {"message": streamed.message(), "finish_reason": streamed.finish_reason}
        body = {"choices": [choice], "usage": streamed.usage, "error": streamed.error}
        return read_completion(body, self._where, self._redact)

    def _out_of_bounds(self, body: bytes | bytearray, problem: str) -> Exception:
        """Returns whose fault an answer beyond the bounds is: the model's if it is a completion at all."""
        if b'"choices"' in body[:_HEAD]:
            return self.endless(f"the reply {problem}")
        return UnusableError(f"{self._where} sent an answer that {problem}")


async def _and_end(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields what has been read, the rest, and the end of the last line."""
    yield head
    async for chunk in chunks:
        yield chunk
    yield b"\n"


async def decompressed(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Decompresses a body piece by piece, so that a small one cannot become a large one at once.

    Args:
        chunks: The body as it came.
        encoding: Its Content-Encoding. The client asks for none, and some servers compress all the same.

    Raises:
        UnusableError: The encoding is unknown, or the data is damaged.
    """
    if encoding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnusableError(f"the answer is compressed as {encoding[:20]!r}, which was not asked for")
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    async for chunk in chunks:
        rest = chunk
        while rest:
            try:
                yield inflate.decompress(rest, _PIECE)
            except zlib.error as error:
                raise UnusableError(f"the answer is damaged: {error}") from None
            rest = inflate.unconsumed_tail


def redact_all(value: Any, redact: Redactor) -> Any:
    """Returns a JSON value with secrets blanked in all its texts, fit to be sent back: no lone surrogates, no NaN."""
    return _redact_all(value, redact, _DEEPEST)


def _redact_all(value: Any, redact: Redactor, depth: int) -> Any:
    if isinstance(value, str):
        return redact(replace_surrogates(value))
    if isinstance(value, float) and value - value != 0:
        return None
    if depth == 0:
        return None
    if isinstance(value, dict):
        return {replace_surrogates(name): _redact_all(item, redact, depth - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_redact_all(item, redact, depth - 1) for item in value]
    return value


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UnusableError("the answer is not JSON") from None
    except ValueError:
        # Python reads no integer of more than 4300 digits, which a model may well have written into an argument.
        return json.loads(body, parse_int=float)
