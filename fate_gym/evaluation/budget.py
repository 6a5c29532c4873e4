"""What a run may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fate_gym.episode import LEFT_OUT
from fate_gym.errors import UsageError
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Agent

COST = "cost_usd"


class Budget:
    """Stops a run once its episodes have cost enough; those under way end, so that a little more may be spent.

    Args:
        limit: In USD; None for no limit.
        agent: Who spends it.
        folder: What it holds already has been spent.
        stop: Set once the limit is reached.

    Raises:
        UsageError: The folder holds episodes whose cost nobody knows.
    """

    def __init__(self, limit: float | None, agent: Agent, folder: RunFolder, stop: asyncio.Event) -> None:
        self._limit = limit
        self._agent = agent
        self._stop = stop
        self.spent = 0.0
        if limit is not None:
            for episodes in (folder.episodes(), folder.failures()):
                self.spent += sum(self._cost(episode.usage, bool(episode.actions)) for episode in episodes)
            self._stop_if_spent()

    def spend(self, finished: Finished) -> None:
        """Counts an episode.

        Raises:
            UsageError: There is a limit, and the episode's cost is unknown: an unknown price is not zero.
        """
        if self._limit is None:
            return
        self.spent += self._cost(finished.usage, finished.acted)
        self._stop_if_spent()

    def _stop_if_spent(self) -> None:
        if self._limit is not None and self.spent >= self._limit:
            self._stop.set()

    def _cost(self, usage: Mapping[str, float], acted: bool) -> float:
        # An episode whose server reported nonsense has no price; that must not end a run whose other prices are known.
        if COST in usage or LEFT_OUT in usage or not acted:
            return usage.get(COST, 0.0)
        spent = self._agent.cost(usage)
        if spent is None:
            raise UsageError(f"max_cost needs costs, and {self._agent.name} reported none for an episode: leave it out")
        return spent


def check_budget(limit: float | None, agent: Agent) -> None:
    """Finds out, before a run, whether its budget can be kept.

    Raises:
        UsageError: There is a limit, and nobody knows what the agent costs.
    """
    if limit is not None and agent.unpriced:
        raise UsageError(
            f"max_cost needs prices, and those of {agent.name} are unknown: give the agent's option `prices`, in USD "
            "per million tokens, such as --agent-arg 'prices={MODEL: {input: 1.0, output: 2.0}}', or leave max_cost out"
        )
