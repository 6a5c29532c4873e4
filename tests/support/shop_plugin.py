"""What a third party's package does on import, and an agent of its own; for tests that start new processes."""

from __future__ import annotations

import asyncio
from typing import Any

import fate_gym

fate_gym.register_benchmark("toy/Parcels-v0", "parcels:Parcels", max_turns=4)


async def clerk(observation: dict[str, Any]) -> dict[str, Any]:
    """Ships the parcel, slowly enough to be killed at it."""
    await asyncio.sleep(0.01)
    if observation["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": "Shipped."}
    return {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]}


async def absent(observation: dict[str, Any]) -> dict[str, Any]:
    """Never answers."""
    raise ConnectionError("nobody at the counter")


async def stuck(observation: dict[str, Any]) -> dict[str, Any]:
    """Answers after the time that a test may take."""
    await asyncio.sleep(3600)
    return {}
