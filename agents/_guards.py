"""Guard models as judges of ATBench: their own prompt and answer formats, as data (`guard_formats.yaml`).

The formats were written from what is published of them. None has been tried on real weights: before a number of a
guard model is reported, look at some of its answers (`guard_output` in the recorded actions) and at its invalid rate.
The prompts of ShieldAgent and AgentDoG are worded anew here, and a model tuned to its makers' words may do worse.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from fate_gym.actions import read_action
from fate_gym.agents._defence import Begin, Defence
from fate_gym.benchmarks.atbench.answers import LINE_NAMES, asks_for_labels
from fate_gym.benchmarks.atbench.rendering import cut_trajectory
from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS
from fate_gym.chat import Message
from fate_gym.env import Observation
from fate_gym.errors import UsageError
from fate_gym.markup import without_thoughts
from fate_gym.rollout import Reply, Session


@functools.cache
def guard_formats() -> dict[str, dict[str, Any]]:
    """The formats that ship with the package, by name."""
    text = resources.files("fate_gym.agents").joinpath("guard_formats.yaml").read_text("utf-8")
    formats: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return formats


class Guard(Defence):
    """Stands in front of a guard model on `fate/ATBench-v0` with `view="full"`.

    The model is sent the trajectory alone, in its own prompt; its answer is written anew in the benchmark's grammar.
    An answer that does not read in the model's format goes through as it is, and counts as invalid.

    Args:
        format_name: One of `guard_formats`.

    Raises:
        ValueError: The format is unknown.
    """

    def __init__(self, format_name: str) -> None:
        if format_name not in guard_formats():
            raise ValueError(f"no guard format {format_name!r}; there are: {', '.join(guard_formats())}")
        self.name = f"guard:{format_name}"
        self._format = guard_formats()[format_name]
        self._judgement = re.compile(self._format["verdict"], re.IGNORECASE | re.MULTILINE)
        self._labels = {
            name: re.compile(pattern, re.IGNORECASE | re.MULTILINE)
            for name, pattern in self._format.get("labels", {}).items()
        }

    def start(self, begin: Begin) -> Session:
        """Begins an episode."""
        return _GuardSession(self, begin())

    def prompt(self, trajectory: str) -> list[Message]:
        """Returns what the model is sent."""
        lists = "\n".join(f"{LINE_NAMES[name]}: {', '.join(labels)}" for name, labels in DIMENSIONS.items())
        # The trajectory last, since it may hold braces of its own.
        text: str = self._format["prompt"].replace("{labels}", lists).replace("{trajectory}", trajectory)
        return [{"role": "user", "content": text}]

    def translate(self, text: str, *, labels: bool) -> str | None:
        """Writes an answer of the model's in the benchmark's grammar; None if it does not read.

        Args:
            text: The answer.
            labels: Whether an answer of "unsafe" needs its labels.

        Raises:
            UsageError: Labels are asked for, and the format has none.
        """
        if labels and not self._labels:
            raise UsageError(f"{self.name} gives no labels: make the environment with labels=False")
        answer = without_thoughts(text)
        match = self._judgement.search(answer)
        if match is None:
            return None
        if match["verdict"].lower() in self._format["safe"]:
            return "safe"
        if not labels:
            return "unsafe"
        lines = {name: pattern.search(answer) for name, pattern in self._labels.items()}
        return "\n".join(["unsafe", *(f"{LINE_NAMES[name]}: {line['label']}" for name, line in lines.items() if line)])


class _GuardSession:
    def __init__(self, guard: Guard, session: Session) -> None:
        self._guard = guard
        self._session = session

    async def act(self, observation: Observation) -> Reply:
        opening: str = next(message["content"] for message in observation["messages"] if message["role"] == "user")
        trajectory = cut_trajectory(opening)
        if trajectory is None:
            raise UsageError(
                f"{self._guard.name} judges fate/ATBench-v0 with view='full' only: the observation holds no trajectory"
            )
        reply = await self._session.act({"messages": self._guard.prompt(trajectory)})
        # A recorded answer stands beside what it was written as, and reads as it did.
        recorded = reply.message.get("guard_output") if isinstance(reply.message, Mapping) else None
        text = recorded if isinstance(recorded, str) else read_action(reply.message, turn=0).text
        answer = self._guard.translate(text, labels=asks_for_labels(opening))
        if answer is None:
            return reply
        return dataclasses.replace(reply, message={"role": "assistant", "content": answer, "guard_output": text})
