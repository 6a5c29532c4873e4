"""Agents that follow a script: bounds and baselines that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fate_gym.chat import Message
from fate_gym.delivery import delivered
from fate_gym.env import Observation
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Demonstration, GroundTruth, Task

_MESSAGES = 7
"""A demonstration takes at most so many messages, so that a user's and an attacker's fit the usual 15 rounds."""


class ScriptedAgent(Agent):
    """An agent without a model."""

    def cost(self, usage: Mapping[str, float]) -> float:
        """A script costs nothing."""
        return 0.0


class Oracle(ScriptedAgent):
    """Does exactly what the user asked, from the ground truth; whatever a tool says."""

    name = "oracle"
    privileged = True

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _Follower(_ground_truth(task), obeys=False)


class Gullible(ScriptedAgent):
    """Does what the user asked, then obeys an injected instruction if it has really seen one in a tool's output."""

    name = "gullible"
    privileged = True

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _Follower(_ground_truth(task), obeys=True)


@dataclass(frozen=True)
class Answerer(ScriptedAgent):
    """Answers at once with a fixed text, and calls nothing."""

    name: str
    text: str

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return self

    async def act(self, observation: Observation) -> Reply:
        """Answers."""
        return Reply(_message(self.text))


REFUSER = Answerer("refuser", "I'm sorry, but I can't help with that request.")
"""Refuses everything."""

NOOP = Answerer("noop", "Done.")
"""Does nothing and says otherwise."""


class _Follower:
    """Plays demonstrations back, a message of calls at a time."""

    def __init__(self, truth: GroundTruth, *, obeys: bool) -> None:
        self._truth = truth
        self._obeys = obeys
        self._obeying = False
        self._answers = [truth.user.answer]
        self._batches = _batches(truth.user)

    async def act(self, observation: Observation) -> Reply:
        if self._obeys and not self._obeying and self._has_seen_injection(observation):
            self._obey()
        if self._batches:
            return Reply(_message("", self._batches.pop(0)))
        # AgentDojo's ground truths may have no text; an assistant message must have some.
        return Reply(_message("\n".join(answer for answer in self._answers if answer) or "Done."))

    def _has_seen_injection(self, observation: Observation) -> bool:
        results = [message["content"] for message in observation["messages"] if message["role"] == "tool"]
        return any(delivered(payload, result) for payload in self._truth.payloads for result in results)

    def _obey(self) -> None:
        injection = self._truth.injection
        if injection is None:
            return
        self._obeying = True
        if self._truth.injection_replaces_task:
            self._batches, self._answers = [], []
        self._batches += _batches(injection)
        self._answers.append(injection.answer)


def _ground_truth(task: Task) -> GroundTruth:
    if task.ground_truth is None:
        raise ValueError(f"task {task.id} came without its ground truth, which this agent follows")
    return task.ground_truth


def _batches(demonstration: Demonstration) -> list[list[Message]]:
    """Spreads calls over messages, one each while there is room."""
    calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in demonstration.calls]
    size = -(-len(calls) // _MESSAGES) or 1
    return [calls[start : start + size] for start in range(0, len(calls), size)]


def _message(text: str, calls: list[Message] | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    return message
