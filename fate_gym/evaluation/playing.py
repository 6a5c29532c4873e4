"""Playing the episodes of a plan: who plays one, and the one loop that has many played at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.errors import LostError, RunError
from fate_gym.evaluation.faults import Fault
from fate_gym.evaluation.garbage import looking_seldom
from fate_gym.evaluation.plan import Item, another
from fate_gym.evaluation.workers import Workers, keep_busy
from fate_gym.rollout import Agent, rollout, unplayed

T = TypeVar("T")


class Played(NamedTuple, Generic[T]):
    """What came of an item.

    Attributes:
        finished: What the player makes of its episode.
        faults: What the code of the environment, a judge or the agent raised in it.
        exhausted: Why its agent can play no further episode, None while it can.
    """

    finished: T
    faults: tuple[Fault, ...] = ()
    exhausted: str | None = None


class Player(Generic[T]):
    """Plays episodes, any number at once, on one event loop. It is a worker (`fate_gym.evaluation.workers`).

    A pickled player makes environments and an agent of its own where it is loaded.

    Args:
        environments: Those of a plan, by `env_index`; episodes are played in others like them.
        agent: Who acts, or a function that returns who acts in an item's episode.
        finish: Makes of an episode what is handed over of it, which other processes get by `pickle`.
    """

    def __init__(
        self,
        environments: Sequence[ToolEnv],
        agent: Agent | Callable[[Item], Agent],
        finish: Callable[[Episode], T],
    ) -> None:
        self._environments = environments
        self._agent = agent
        self._finish = finish
        # No two episodes share an environment; one that is over leaves its own to the next.
        self._free: dict[int, list[ToolEnv]] = defaultdict(list)

    def __getstate__(self) -> dict[str, Any]:
        environments = [another(env) for env in self._environments]
        return {**self.__dict__, "_environments": environments, "_free": defaultdict(list)}

    async def play(self, item: Item) -> Played[T]:
        """Plays an item. Only a mistake in this package raises, or what makes something of its episode."""
        agent = self._agent if isinstance(self._agent, Agent) else self._agent(item)
        free = self._free[item.env_index]
        env = free.pop() if free else another(self._environments[item.env_index])
        faults: list[Fault] = []
        episode = await rollout(
            env,
            agent,
            item.task_id,
            item.seed,
            repeat=item.repeat,
            key=item.key,
            on_fault=lambda error: faults.append(Fault.of(error)),
        )
        free.append(env)
        try:
            finished = self._finish(episode)
        except (RunError, TypeError, ValueError) as error:
            # A third party's benchmark may say what no file can hold; its other episodes are none the worse for it.
            faults.append(Fault.of(error))
            finished = self._finish(self._unplayed(item, f"the episode cannot be stored: {error}"))
        return Played(finished, tuple(faults), agent.exhausted)

    async def give_up(self, lost: tuple[Item, str]) -> Played[T]:
        """Makes the episode of an item that nobody could play, and of why."""
        item, why = lost
        return Played(self._finish(self._unplayed(item, why)), (Fault(LostError.__name__, why, ""),))

    def _unplayed(self, item: Item, why: str) -> Episode:
        task = self._environments[item.env_index].task(item.task_id)
        return unplayed(task, item.seed, repeat=item.repeat, key=item.key, error=why)

    async def check(self, tools: bool) -> None:
        """Finds out whether the agent can answer at all; see `Agent.check`."""
        if isinstance(self._agent, Agent):
            await self._agent.check(tools=tools)

    async def aclose(self) -> None:
        """Closes the agent."""
        if isinstance(self._agent, Agent):
            await self._agent.aclose()


async def run_episodes(
    items: Iterable[Item],
    workers: Workers[Player[T]],
    *,
    concurrency: int,
    on_done: Callable[[Item, T], Awaitable[None]],
    stop: asyncio.Event | None = None,
    on_fault: Callable[[Fault], None] = lambda fault: None,
) -> str | None:
    """Has episodes played, many at once.

    Args:
        items: The episodes; read one by one, so that they may be more than fits into memory.
        workers: Who plays them, and where.
        concurrency: Episodes under way at once.
        on_done: Called with each item, the very object, and what the player made of its episode, in the order in which
            the episodes end. The next one begins when it is done; what it raises ends the run.
        stop: Once set, no further episode begins; those under way end.
        on_fault: Called with what the code of an environment, a judge or an agent raised in an episode.

    Returns:
        Why an agent could play no further episode, so that no other began; None if there was no such reason.

    Raises:
        Exception: What `items`, `workers` or `on_done` raised; an episode itself raises nothing.
    """
    waiting = iter(items)
    exhausted: str | None = None

    async def play_one_by_one() -> None:
        nonlocal exhausted
        for item in waiting:
            if exhausted is not None or (stop is not None and stop.is_set()):
                return
            try:
                played = await workers.do(Player.play, item)
            except LostError as lost:
                played = await workers.do(Player.give_up, (item, str(lost)))
            exhausted = exhausted or played.exhausted
            await on_done(item, played.finished)
            # In the order in which episodes are done: whoever counts faults must not hear of one before an earlier end.
            for fault in played.faults:
                on_fault(fault)

    with looking_seldom():
        await keep_busy(concurrency, play_one_by_one)
    return exhausted
