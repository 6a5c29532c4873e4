"""What a third party's package does on import, and an agent of its own; for tests that start new processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import parcels

import fate_gym

fate_gym.register_benchmark("toy/Parcels-v0", "parcels:Parcels", max_turns=4)
fate_gym.register_benchmark("toy/Cursed-v0", "shop_plugin:CursedParcels", max_turns=4)

HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b2J\u202enot\u2066 [red]x[/red] [/nothing]\u200b\u3164\ud800\r\nfate-gym: forged"
"""What a stranger may put into any text: it retitles and recolours a terminal, turns text round, forges a line."""


_NAME = HOSTILE.replace("\ud800", "")
"""Keys of episodes must be valid Unicode."""


class CursedParcels(parcels.Parcels):
    """The shop, with a hostile text wherever a benchmark can put one."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = tuple(f"{task}{_NAME}" for task in self.tasks)

    def task(self, task_id: str) -> fate_gym.Task:
        task = super().task(task_id.removesuffix(_NAME))
        attack = task.attack and task.attack + _NAME
        return fate_gym.Task(
            id=task_id, mode=task.mode, suite=task.suite + _NAME, cluster=task.cluster + _NAME, attack=attack
        )

    def ground_truth(self, task_id: str) -> fate_gym.GroundTruth:
        return super().ground_truth(task_id.removesuffix(_NAME))

    def open(self, task_id: str, seed: int) -> fate_gym.World:
        world = super().open(task_id.removesuffix(_NAME), seed)
        world.injections = {vector + _NAME: text + _NAME for vector, text in world.injections.items()}
        return world


async def curse(observation: dict[str, Any]) -> dict[str, Any]:
    """Says hostile things in every field that a model has, then fails with one."""
    if observation["messages"][-1]["role"] == "tool":
        raise ConnectionError(HOSTILE)
    return {
        "content": HOSTILE,
        "tool_calls": [{"id": HOSTILE, "function": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}}],
    }


async def cursed_answer(observation: dict[str, Any]) -> dict[str, Any]:
    """Calls a tool with hostile texts, then answers with one."""
    if observation["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": HOSTILE}
    return await curse(observation)


async def terminated(observation: dict[str, Any]) -> dict[str, Any]:
    """Ships, and has the system end the process in its second turn, which never ends."""
    if observation["messages"][-1]["role"] != "tool":
        return await clerk(observation)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(3600)
    return {}


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
    """Says that it was asked, and answers after the time that a test may take."""
    sys.stderr.write("stuck\n")
    await asyncio.sleep(3600)
    return {}


async def filtered(observation: dict[str, Any]) -> dict[str, Any]:
    """Answers as an API agent does where the provider's content filter fired."""
    return {"role": "assistant", "content": "I can't help with that.", "finish_reason": "content_filter"}


async def vandal(observation: dict[str, Any]) -> dict[str, Any]:
    """Removes the run folder, saves its log as an editor does, or edits it, as `SHOP_VANDAL` says; then answers."""
    what, _, folder = os.environ["SHOP_VANDAL"].partition(":")
    log = Path(folder, "episodes.jsonl")
    if what == "removed":
        shutil.rmtree(folder, ignore_errors=True)
    elif log.exists():
        copy = log.with_suffix(".copy")
        copy.write_bytes(log.read_bytes().replace(b"ship", b"shop") if what == "edited" else log.read_bytes())
        copy.replace(log)
    return {"role": "assistant", "content": "Done."}
