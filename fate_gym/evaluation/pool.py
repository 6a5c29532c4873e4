"""The one pool of workers that runs episodes, for evaluation, training and verification alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.rollout import Agent, rollout

OnDone: TypeAlias = Callable[[Item, Episode], Awaitable[None]]


async def run_episodes(
    plan: Plan,
    items: Iterable[Item],
    agent: Agent | Callable[[Item], Agent],
    *,
    concurrency: int,
    on_done: OnDone,
    stop: asyncio.Event | None = None,
    on_fault: Callable[[BaseException], None] = lambda error: None,
) -> None:
    """Runs episodes, many at once. Each worker runs one after the other, in environments of its own.

    Args:
        plan: Makes the environments.
        items: The episodes; read one by one, so that they may be more than fits into memory.
        agent: Who acts, or a function that returns who acts in an item's episode. Once that agent is exhausted, no
            further episode begins.
        concurrency: Episodes under way at once.
        on_done: Called with each item, the very object, and its episode, in the order in which the episodes end. Its
            worker goes on when it is done; what it raises ends the run.
        stop: Once set, no further episode begins; those under way end.
        on_fault: Called with what the code of an environment, a judge or an agent raised in an episode.

    Raises:
        Exception: What `items`, `agent` or `on_done` raised; an episode itself raises nothing.
    """
    waiting = iter(items)

    async def work() -> None:
        envs: dict[int, ToolEnv] = {}
        for item in waiting:
            if stop is not None and stop.is_set():
                return
            actor = agent if isinstance(agent, Agent) else agent(item)
            if actor.exhausted is not None:
                return
            if item.env_index not in envs:
                envs[item.env_index] = plan.make_env(item.env_index)
            episode = await rollout(
                envs[item.env_index],
                actor,
                item.task_id,
                item.seed,
                repeat=item.repeat,
                key=item.key,
                on_fault=on_fault,
            )
            await on_done(item, episode)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except* Exception as failures:
        # A full disk or a damaged folder meets every worker alike: the first to say so says it all.
        raise failures.exceptions[0] from None
