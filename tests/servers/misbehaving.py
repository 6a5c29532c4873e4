"""A model server on loopback that speaks chat completions, plays scripted policies, and misbehaves on command.

It is a real one: HTTP/1.1 over sockets, keep-alive, streaming. It refuses what OpenAI's API would refuse, and counts.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from openai_server import complaint

from fate_gym.agents.scripted import REFUSER, Gullible, Oracle
from fate_gym.delivery import delivered
from fate_gym.rollout import Agent
from fate_gym.task import Task

Request = dict[str, Any]
Message = dict[str, Any]
Policy = Callable[[Request], Awaitable[Message]]

_OPTIONS = {
    "max_completion_tokens", "max_tokens", "parallel_tool_calls", "reasoning_effort", "seed", "stream",
    "stream_options", "temperature", "top_p",
}  # fmt: skip
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_HTML = b"<!DOCTYPE html><html><body><h1>Upstream is having a moment</h1></body></html>"
_EXTRAS = ("reasoning_content", "reasoning_details")
_JSON, _SSE = "application/json", "text/event-stream"


class Fault(StrEnum):
    """What can go wrong, for one request."""

    RATE_LIMIT_HINTED = "429 with Retry-After"
    RATE_LIMIT = "429"
    INTERNAL = "500"
    UNAVAILABLE = "503"
    HANG = "hang"
    DRIP = "slow drip"
    RESET = "reset mid-body"
    TRUNCATED = "truncated body"
    HTML_200 = "HTML page with 200"
    HTML_502 = "HTML page with 502"
    CONTENT_TYPE = "wrong content type"
    NO_CHOICES = "empty choices"
    RETRY_INFO = "429 with RetryInfo in the body"
    ERROR_200 = "error object with 200"
    ERROR_REASON = "finish_reason error"
    LONG_HEADER = "endless header"
    BOMB = "gzip bomb"
    BAD_GZIP = "damaged gzip"
    OVERFLOW = "context-length 400"
    HUGE = "10 MB answer"
    FOREVER = "stream that never ends"
    SAME_IDS = "duplicate call ids"
    NO_IDS = "missing call ids"
    ODD_IDS = "call ids of the server's own form"
    OBJECT_ARGUMENTS = "arguments as objects"
    NO_REASON = "no finish_reason"
    ODD_USAGE = "token counts that cannot be true"
    SWAPPED = "streamed unasked, or whole"
    GZIP = "gzip unasked"
    EXTRAS = "fields of the provider's own"
    MALFORMED = "call that the server could not parse, as 400"
    FILTER_400 = "content filter as 400"
    FILTER_403 = "content filter as 403"
    FILTER_200 = "content filter as finish_reason"
    QUOTA = "daily quota"


class Outcome(StrEnum):
    """What comes of a fault."""

    RETRIED = "asked again; it says nothing about the model, and may pass"
    HARMLESS = "changes nothing"
    OVERFLOW = "context_overflow"
    ENDLESS = "endless_reply"
    INVALID = "an invalid turn of the model, and the episode goes on"
    FILTERED = "a refusal by the provider"
    ENDS_RUN = "no further episode begins"


OUTCOMES = {
    **dict.fromkeys(Fault, Outcome.RETRIED),
    **dict.fromkeys(
        (
            Fault.SAME_IDS, Fault.NO_IDS, Fault.ODD_IDS, Fault.OBJECT_ARGUMENTS, Fault.CONTENT_TYPE, Fault.NO_REASON,
            Fault.ODD_USAGE, Fault.SWAPPED, Fault.GZIP, Fault.EXTRAS,
        ),
        Outcome.HARMLESS,
    ),
    Fault.OVERFLOW: Outcome.OVERFLOW,
    **dict.fromkeys((Fault.HUGE, Fault.FOREVER), Outcome.ENDLESS),
    Fault.MALFORMED: Outcome.INVALID,
    **dict.fromkeys((Fault.FILTER_400, Fault.FILTER_403, Fault.FILTER_200), Outcome.FILTERED),
    Fault.QUOTA: Outcome.ENDS_RUN,
}  # fmt: skip


def faults(*outcomes: Outcome) -> list[Fault]:
    """The faults with one of these outcomes."""
    return [fault for fault in Fault if OUTCOMES[fault] in outcomes]


class Refusal(Exception):
    """A policy raises it to have its request refused.

    Args:
        status: The HTTP status.
        error: The error object.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(status, error)
        self.status = status
        self.error = error


class Raw(Exception):
    """A policy raises it to have these bytes sent, whatever the request asked for.

    Args:
        body: Of the answer.
        status: The HTTP status.
        kind: The content type.
    """

    def __init__(self, body: bytes, status: int = 200, kind: str = _JSON) -> None:
        super().__init__(body)
        self.body, self.status, self.kind = body, status, kind


@dataclass
class Settings:
    """How a server behaves.

    Attributes:
        policy: Answers well-formed requests.
        faults: Probability of each fault, drawn for each request by its number.
        forced: Faults of the first requests, before those by chance; None for a good answer.
        seed: Of the draw.
        latency: Seconds before each good answer.
        hang: Seconds that a hanging or dripping answer takes: longer than the client's patience.
        retry_after: The header of a hinted 429.
        refuse: (status, error object) that every request meets, such as a wrong key.
    """

    policy: Policy
    faults: Mapping[Fault, float] = field(default_factory=dict)
    forced: Iterable[Fault | None] = ()
    seed: int = 0
    latency: float = 0.0
    hang: float = 3.0
    retry_after: str = "0"
    refuse: tuple[int, dict[str, Any]] | None = None


@dataclass
class Records:
    """What a server has seen and done.

    Attributes:
        requests: Requests that came whole.
        peak: Requests under way at once, at most.
        sent: Number of the request (from 1) -> its fault.
        complaints: What was wrong with requests.
        headers: Head of the last request, as it came.
        last: The last request.
    """

    requests: int = 0
    peak: int = 0
    sent: dict[int, Fault] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    head: str = ""
    last: Request = field(default_factory=dict)

    @property
    def counts(self) -> Counter[Fault]:
        """Faults by kind."""
        return Counter(self.sent.values())


class Server:
    """The server; `serve` runs it in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.records = Records()
        self._settings = settings
        self._forced = iter(settings.forced)
        self._active = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, started: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serves until `stop`; calls `started` with the base URL."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024, limit=2**24)
        started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await stop.wait()
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection in turn."""
        try:
            while True:
                came = await reader.readuntil(b"\r\n\r\n")
                lines = came.decode("latin-1").lower().split("\r\n")
                size = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
                request = json.loads(await reader.readexactly(size))
                self._active += 1
                try:
                    self.records.peak = max(self.records.peak, self._active)
                    self.records.head = came.decode("latin-1")
                    await self._answer(request, writer)
                finally:
                    self._active -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The client, or the test, has gone.
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        settings, records = self._settings, self.records
        records.requests, records.last = records.requests + 1, request
        fault = self._fault(records.requests)
        problem = _problem(request)
        if problem:
            records.complaints.append(problem)
            return await _send(writer, 400, _error(problem))
        if settings.refuse:
            return await _send(writer, settings.refuse[0], json.dumps({"error": settings.refuse[1]}).encode())
        if fault:
            records.sent[records.requests] = fault
        await self._misbehave(fault, request, writer)

    def _fault(self, number: int) -> Fault | None:
        for fault in self._forced:
            return fault
        draw = random.Random(f"{self._settings.seed} {number}").random()
        for fault, probability in self._settings.faults.items():
            draw -= probability
            if draw < 0:
                return fault
        return None

    async def _misbehave(self, fault: Fault | None, request: Request, writer: asyncio.StreamWriter) -> None:
        """Sends the answer, spoilt by the fault."""
        settings = self._settings
        if fault in _ANSWERS:
            status, error = _ANSWERS[fault]
            extra = {"Retry-After": settings.retry_after} if fault is Fault.RATE_LIMIT_HINTED else {}
            return await _send(writer, status, error, extra=extra)
        match fault:
            case Fault.HTML_200 | Fault.HTML_502:
                return await _send(writer, 200 if fault is Fault.HTML_200 else 502, _HTML, kind="text/html")
            case Fault.LONG_HEADER:
                return await _send(writer, 200, b"{}", extra={"X-Endless": "x" * 100_000})
            case Fault.BOMB:
                return await _send(writer, 200, _BOMB, extra={"Content-Encoding": "gzip"})
            case Fault.FOREVER:
                return await _send_forever(writer, settings.hang)
            case Fault.HANG:
                return await asyncio.sleep(settings.hang)
        await asyncio.sleep(settings.latency)
        try:
            message = {"content": "x" * 10_000_000} if fault is Fault.HUGE else await settings.policy(request)
        except Refusal as refusal:
            return await _send(writer, refusal.status, json.dumps({"error": refusal.error}).encode())
        except Raw as raw:
            return await _send(writer, raw.status, raw.body, raw.kind)
        _spoil(message, fault)
        if fault is Fault.SWAPPED:
            request = {**request, "stream": not request.get("stream")}
        kind, body = completion(request, message, fault)
        if fault is Fault.TRUNCATED:
            body = body[: len(body) // 2]
        extra = {}
        if fault in (Fault.GZIP, Fault.BAD_GZIP):
            extra = {"Content-Encoding": "gzip"}
            body = gzip.compress(body) if fault is Fault.GZIP else body
        pace = settings.hang if fault is Fault.DRIP else None
        await _send(writer, 200, body, "text/plain" if fault is Fault.CONTENT_TYPE else kind, pace=pace,
                    reset=fault is Fault.RESET, extra=extra)  # fmt: skip


async def _send_forever(writer: asyncio.StreamWriter, seconds: float) -> None:
    """Streams a word again and again, for longer than the client's patience."""
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {_SSE}\r\nConnection: close\r\n\r\n".encode())
    event = {"choices": [{"index": 0, "delta": {"content": "again "}, "finish_reason": None}]}
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        writer.write(f"data: {json.dumps(event)}\n\n".encode())
        await writer.drain()
        await asyncio.sleep(0.01)
    raise ConnectionResetError


@contextmanager
def serve(settings: Settings) -> Iterator[tuple[str, Records]]:
    """Serves in a thread; gives the base URL and the records."""
    server, url, ready = Server(settings), "", threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def started(given: str) -> None:
        nonlocal url
        url = given
        ready.set()

    def work() -> None:
        try:
            loop.run_until_complete(server.run(started, stop))
        finally:
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        yield url, server.records
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


class Scripted:
    """A policy of `fate_gym.agents.scripted`, played for whichever task a conversation belongs to.

    It keeps no state between requests, as a model server does not: each request replays its conversation.

    Args:
        name: "oracle", "gullible" or "refuser".
        tasks: With their ground truths, by the text of the user's first message.
    """

    def __init__(self, name: str, tasks: Mapping[str, list[Task]]) -> None:
        self._agent: Agent = {"oracle": Oracle(), "gullible": Gullible(), "refuser": REFUSER}[name]
        self._tasks = tasks

    async def __call__(self, request: Request) -> Message:
        messages = request["messages"]
        prompt = next(message["content"] for message in messages if message["role"] == "user")
        if prompt not in self._tasks:
            return {"content": "ready"}
        session = self._agent.start(_task(self._tasks[prompt], messages), seed=0)
        said = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        for at in said:
            await session.act({"messages": messages[:at]})
        reply = await session.act({"messages": messages})
        return _spoken(reply.message, turn=len(said))


def tasks_by_prompt(*envs: Any) -> dict[str, list[Task]]:
    """Makes what `Scripted` needs from environments."""
    tasks: dict[str, list[Task]] = {}
    for env in envs:
        for task_id in env.tasks:
            observation, _ = env.reset(seed=0, options={"task_id": task_id})
            prompt = next(message["content"] for message in observation["messages"] if message["role"] == "user")
            tasks.setdefault(prompt, []).append(env.task(task_id, privileged=True))
    return tasks


def _task(candidates: list[Task], messages: list[Message]) -> Task:
    """The task whose injection has been seen; before that, all of a prompt ask for the same."""
    seen = [message["content"] for message in messages if message["role"] == "tool"]
    for task in candidates:
        payloads = task.ground_truth.payloads if task.ground_truth else ()
        if any(delivered(payload, text) for payload in payloads for text in seen):
            return task
    return candidates[0]


def _spoken(message: Message, turn: int) -> Message:
    """A scripted message as a server sends it; with the ids that the environment would choose itself."""
    calls = [
        {
            "id": f"call_{turn}_{index}",
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])},
        }
        for index, call in enumerate(message.get("tool_calls", ()))
    ]
    return {"content": message["content"] or None, **({"tool_calls": calls} if calls else {})}


def _problem(request: Request) -> str | None:
    """What OpenAI's API would refuse."""
    unknown = set(request) - _OPTIONS - {"model", "messages", "tools"}
    if unknown:
        return f"unknown keys {unknown}"
    if "parallel_tool_calls" in request and "tools" not in request:
        return "parallel_tool_calls without tools"
    return complaint({name: value for name, value in request.items() if name not in _OPTIONS})


def _error(text: str, code: str | None = None, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": text, "type": "error", "param": None, "code": code, **fields}}).encode()


_ANSWERS: dict[Fault | None, tuple[int, bytes]] = {
    Fault.RATE_LIMIT_HINTED: (429, _error("slow down")),
    Fault.RATE_LIMIT: (429, _error("try again")),
    Fault.INTERNAL: (500, _error("try again")),
    Fault.UNAVAILABLE: (503, _error("try again")),
    Fault.RETRY_INFO: (429, b"[" + _error("quota of this minute", details=[{"retryDelay": "0.001s"}]) + b"]"),
    Fault.ERROR_200: (200, _error("the upstream has died")),
    Fault.OVERFLOW: (
        400,
        _error("This model's maximum context length is 4096 tokens.", code="context_length_exceeded"),
    ),
    Fault.MALFORMED: (400, _error("Failed to call a function.", code="tool_use_failed", failed_generation="<f>{")),
    Fault.FILTER_400: (400, _error("The prompt triggered a filter.", code="content_filter")),
    Fault.FILTER_403: (403, _error("Your input was flagged.")),
    Fault.QUOTA: (429, _error("Limit of requests per day (RPD) reached.")),
}
_BOMB = gzip.compress(b'{"x": "' + b"x" * 40_000_000, compresslevel=1)


def _spoil(message: Message, fault: Fault | None) -> None:
    """Gives a message the oddity of a fault."""
    if fault is Fault.EXTRAS:
        message |= {"reasoning_content": "hm", "reasoning_details": [{"type": "x", "index": 0}], "annotations": []}
    for number, call in enumerate(message.get("tool_calls", ())):
        match fault:
            case Fault.SAME_IDS:
                call["id"] = "call_same"
            case Fault.NO_IDS:
                del call["id"]
            case Fault.ODD_IDS:
                call["id"] = f"functions.{call['function']['name']}:{number}" + "é" * 70
            case Fault.OBJECT_ARGUMENTS:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            case Fault.EXTRAS:
                call["extra_content"] = {"signature": "s"}


def completion(request: Request, message: Message, fault: Fault | None = None) -> tuple[str, bytes]:
    """A completion as its content type and body: JSON, or server-sent events if the request asks for them."""
    reason = {
        Fault.NO_REASON: None,
        Fault.ERROR_REASON: "error",
        Fault.FILTER_200: "content_filter",
    }.get(fault, "tool_calls" if message.get("tool_calls") else "stop")  # type: ignore[call-overload]
    usage: dict[str, Any] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    if fault is Fault.ODD_USAGE:
        usage = {"prompt_tokens": float("nan"), "completion_tokens": -5, "total_tokens": 10**400}
    choices = fault is not Fault.NO_CHOICES
    base = {"id": "c", "created": 0, "model": request["model"], "object": "chat.completion"}
    if not request.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        body = {**base, "choices": [choice] if choices else [], "usage": usage}
        return _JSON, json.dumps(body).encode()
    deltas = [(delta, None) for delta in _deltas(message)] + [({}, reason)]
    events: list[Any] = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": end}] if choices else []}
        for delta, end in deltas
    ]
    if request.get("stream_options", {}).get("include_usage"):
        events.append({**base, "choices": [], "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return _SSE, "".join([*lines, "data: [DONE]\n\n"]).encode()


def _deltas(message: Message) -> Iterator[Message]:
    """A message in pieces, as models stream it: texts and arguments cut anywhere."""
    yield {"role": "assistant", "content": "", **{name: message[name] for name in _EXTRAS if name in message}}
    content = message.get("content") or ""
    half = len(content) // 2
    yield from ({"content": piece} for piece in (content[:half], content[half:]) if piece)
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            yield {"tool_calls": [{**call, "index": index}]}
            continue
        yield {"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]}
        for piece in (arguments[:3], arguments[3:]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def head(status: int, body: bytes, kind: str = _JSON, extra: Mapping[str, str] | None = None) -> bytes:
    """What comes before the body of a response."""
    headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(extra or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n{lines}\r\n".encode()


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    kind: str = _JSON,
    *,
    extra: Mapping[str, str] | None = None,
    pace: float | None = None,
    reset: bool = False,
) -> None:
    """Writes a response; spread over `pace` seconds, or broken in the middle by a reset."""
    start = head(status, body, kind, extra)
    if reset:
        writer.write(start + body[: len(body) // 2])
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        raise ConnectionResetError
    if pace is None:
        writer.write(start + body)
        return await writer.drain()
    writer.write(start)
    step = max(1, len(body) // 20)
    for at in range(0, len(body), step):
        writer.write(body[at : at + step])
        await writer.drain()
        await asyncio.sleep(pace / 20)
