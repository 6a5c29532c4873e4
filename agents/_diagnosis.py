"""The shortcuts to beat on ATBench: agents that judge a trajectory without reading it."""

from __future__ import annotations

from dataclasses import dataclass

from fate_gym.agents.scripted import ScriptedAgent
from fate_gym.chat import Message
from fate_gym.env import Observation
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task


@dataclass(frozen=True)
class TurnCount(ScriptedAgent):
    """Calls a trajectory unsafe by its number of turns alone, as the observation gives it.

    Where labels are asked for, an unsafe verdict has the first of each dimension.

    Args:
        threshold: Turns above which a trajectory is called unsafe; -1 calls all unsafe. The default is the length of
            ATBench's longest safe trajectory, so what it flags there is right and what it misses is most.
        name: Stands in results.
    """

    threshold: int = 18
    name: str = "turn-count"

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode; the task's metadata says which form of answer is asked for."""
        paged = task.metadata.get("view") == "paged"
        return _Judge(self.threshold, paged=paged, labels=bool(task.metadata.get("labels")))


def always_unsafe() -> Agent:
    """Makes the agent that calls every trajectory unsafe."""
    return TurnCount(-1, "always-unsafe")


@dataclass(frozen=True)
class _Judge:
    threshold: int
    paged: bool
    labels: bool

    async def act(self, observation: Observation) -> Reply:
        # Here, since listing the agents is to load no benchmark.
        from fate_gym.benchmarks.atbench.answers import Diagnosis, count_turns, write_answer
        from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS

        turns = max(count_turns(message["content"]) for message in observation["messages"])
        unsafe = turns > self.threshold
        labels = {name: vocabulary[0] for name, vocabulary in DIMENSIONS.items()} if unsafe and self.labels else {}
        message: Message = {"role": "assistant", "content": ""}
        if self.paged:
            arguments = {"safety": "unsafe" if unsafe else "safe", **labels}
            message["tool_calls"] = [{"function": {"name": "submit_verdict", "arguments": arguments}}]
        else:
            message["content"] = write_answer(Diagnosis(unsafe, labels))
        return Reply(message)
