"""Agents for tests of worker processes: they end their process, fail, run out of what they need, or talk."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import shop_plugin

from fate_gym.agents.local import LocalAgent
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task


class Clerk(Agent):
    """Ships the parcel."""

    name = "clerk"

    def start(self, task: Task, seed: int) -> Session:
        return self

    async def act(self, observation: dict[str, Any]) -> Reply:
        return Reply(await shop_plugin.clerk(observation))


class Raising(Clerk):
    """Raises at the attacked task."""

    def __init__(self, raised: BaseException) -> None:
        self._raised = raised

    def start(self, task: Task, seed: int) -> Session:
        return _Raising(self._raised) if task.mode == "attacked" else self


class _Raising(Session):
    def __init__(self, raised: BaseException) -> None:
        self._raised = raised

    async def act(self, observation: dict[str, Any]) -> Reply:
        raise self._raised


class Placed(Clerk):
    """Leaves a file named after the node of a Ray cluster that it works on; where that node is lost, it never ends."""

    def __init__(self, places: Path) -> None:
        self._places = places

    async def act(self, observation: dict[str, Any]) -> Reply:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (self._places / node).touch()
        while (self._places / f"{node} is lost").exists():
            await asyncio.sleep(0.1)
        return await super().act(observation)


class Carded(LocalAgent):
    """A model in its own process, which leaves the cards that the process sees, and its number, in a folder."""

    def __init__(self, model: str, cards: Path) -> None:
        super().__init__(model, max_new_tokens=8, temperature=1.0, device=None)
        self._cards = cards

    def start(self, task: Task, seed: int) -> Session:
        (self._cards / f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}").touch()
        return super().start(task, seed)


class Deadly(Clerk):
    """Ends its process at the attacked task: as often as the file says, which it counts down."""

    def __init__(self, lives: Path) -> None:
        self._lives = lives

    def start(self, task: Task, seed: int) -> Session:
        if task.mode == "attacked" and (left := int(self._lives.read_text())):
            self._lives.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return self


class Spent(Clerk):
    """Has a quota of one episode."""

    def start(self, task: Task, seed: int) -> Session:
        self.exhausted = "no more today"
        return self


class Talker(Clerk):
    """Says the same in every episode."""

    def start(self, task: Task, seed: int) -> Session:
        logging.getLogger("fate_gym").warning("the clerk is %s", "busy")
        return self


class Locked(Clerk):
    """Has a lock, which no other process can get, in what it logs, or in why it plays no more."""

    def __init__(self, where: str) -> None:
        self._where = where

    def start(self, task: Task, seed: int) -> Session:
        if self._where == "log":
            logging.getLogger("fate_gym").warning("the door is %s", "shut", extra={"lock": threading.Lock()})
        else:
            self.exhausted = _Reason()
        return self


class _Reason(str):
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle it")


class Unmakeable(Clerk):
    """Can be made in one process only."""

    def __init__(self, home: int) -> None:
        if os.getpid() != home:
            raise ValueError("no such clerk here")


def buggy(observation: dict[str, Any]) -> Any:
    """Has a slip in its code."""
    return observation["nothing"]


nameless = lambda observation: "Done."  # noqa: E731
