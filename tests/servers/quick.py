"""A model server that costs next to nothing, in a process of its own: what is measured beside it is the client alone.

It thinks of each request once, as the policy says, and answers the same bytes from memory from then on. So a bench lets
it see every request once before it measures.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from misbehaving import Policy, completion, head

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Spent:
    """What a quick server has done so far.

    Attributes:
        replies: Completions that it sent.
        thought: Requests that it had not seen before.
        seconds: Its processor time.
    """

    replies: int
    thought: int
    seconds: float

    def __sub__(self, before: Spent) -> Spent:
        return Spent(self.replies - before.replies, self.thought - before.thought, self.seconds - before.seconds)


def spent(url: str) -> Spent:
    """Asks a quick server what it has done so far."""
    with urllib.request.urlopen(f"{url}/spent") as answer:  # noqa: S310 (loopback)
        return Spent(**json.load(answer))


@contextmanager
def serve_quickly(policy: Policy, latency: float = 0.0) -> Iterator[str]:
    """Serves in a process of its own; gives the base URL.

    Args:
        policy: Answers requests; sent by pickle.
        latency: Seconds between a request and its answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(policy, latency, theirs), daemon=True)
    process.start()
    theirs.close()  # So that a process that fails ends the wait for its address.
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()
        ours.close()


def _work(policy: Policy, latency: float, pipe: Any) -> None:
    asyncio.run(_serve(_Memory(policy, latency), pipe))


async def _serve(memory: _Memory, pipe: Any) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(memory), "127.0.0.1", 0, backlog=1024)
    pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    await asyncio.Event().wait()


class _Memory:
    """The answers to all requests that were seen."""

    def __init__(self, policy: Policy, latency: float) -> None:
        self.latency, self.replies = latency, 0
        self._policy = policy
        self._answers: dict[bytes, bytes] = {}

    def known(self, body: bytes) -> bytes | None:
        """Returns what is sent for a request, None for one that is new."""
        self.replies += 1
        return self._answers.get(body)

    async def think(self, body: bytes) -> bytes:
        """Returns what is sent for a request that is new."""
        request = json.loads(body)
        kind, content = completion(request, await self._policy(request))
        answer = self._answers[body] = head(200, content, kind) + content
        return answer

    def spent(self) -> bytes:
        """Returns what was done so far, as it is sent."""
        content = json.dumps(
            {"replies": self.replies, "thought": len(self._answers), "seconds": time.process_time()}
        ).encode()
        return head(200, content) + content


class _Connection(asyncio.Protocol):
    """One connection, whose requests come one after the other."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._received = b""
        self._under_way: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        start, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(start):
            return
        self._received = b""
        if start.startswith(b"GET /v1/spent "):
            self._transport.write(self._memory.spent())
            return
        answer = self._memory.known(body)
        if answer is not None:
            asyncio.get_running_loop().call_later(self._memory.latency, self._transport.write, answer)
        else:
            self._under_way.add(asyncio.create_task(self._think(body)))

    async def _think(self, body: bytes) -> None:
        answer = await self._memory.think(body)
        await asyncio.sleep(self._memory.latency)
        self._transport.write(answer)


def _length(start: bytes) -> int:
    """The length of the body that a request names."""
    found = _LENGTH.search(start)
    return int(found[1]) if found else 0
