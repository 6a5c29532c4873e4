"""What passes between processes goes out together where it can, and nothing of it is lost at the end."""

import asyncio
import pickle
import socket
import time
from typing import Any

from fate_gym.evaluation.processes import _Channel


async def ends() -> tuple[_Channel, _Channel]:
    """Both ends of a channel."""
    ours, theirs = socket.socketpair()
    return await _Channel.over(ours), await _Channel.over(theirs)


def writes(channel: _Channel, monkeypatch: Any) -> list[int]:
    """Notes the length of each write."""
    noted: list[int] = []
    write = channel._writer.write

    def note(data: bytes) -> None:
        noted.append(len(data))
        write(data)

    monkeypatch.setattr(channel._writer, "write", note)
    return noted


def test_what_is_sent_at_one_time_takes_one_write(monkeypatch: Any) -> None:
    async def main() -> None:
        ours, theirs = await ends()
        noted = writes(ours, monkeypatch)
        for number in range(20):
            ours.send(("a", number))
        assert [await theirs.receive() for _ in range(20)] == [("a", number) for number in range(20)]
        assert len(noted) == 1
        ours.send("b")
        assert await theirs.receive() == "b"
        assert len(noted) == 2
        for end in (ours, theirs):
            await end.aclose()

    asyncio.run(main())


def test_what_may_wait_goes_out_with_what_follows_in_time(monkeypatch: Any) -> None:
    async def main() -> None:
        ours, theirs = await ends()
        noted = writes(ours, monkeypatch)
        began = time.monotonic()
        ours.send("first", within=0.2)
        await asyncio.sleep(0.02)
        assert noted == []
        ours.send("second", within=0.2)
        assert [await theirs.receive(), await theirs.receive()] == ["first", "second"]
        assert time.monotonic() - began >= 0.19
        assert len(noted) == 1
        for end in (ours, theirs):
            await end.aclose()

    asyncio.run(main())


def test_what_waits_is_sent_when_the_channel_closes() -> None:
    async def main() -> None:
        ours, theirs = await ends()
        ours.send("last words", within=60.0)
        await ours.aclose()
        assert await theirs.receive() == "last words"
        await theirs.aclose()

    asyncio.run(main())


def test_what_waits_goes_out_though_no_timer_runs() -> None:
    """An agent that computes keeps the loop from its timers."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = await _Channel.over(ours)
        theirs.setblocking(False)
        channel.send("early", within=0.01)
        time.sleep(0.05)
        channel.send("late", within=0.01)
        # Without a round of the loop in between.
        assert pickle.dumps("early", pickle.HIGHEST_PROTOCOL) in theirs.recv(1000)
        await channel.aclose()
        theirs.close()

    asyncio.run(main())
