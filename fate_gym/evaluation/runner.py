"""Runs the episodes of a plan: an asyncio coroutine each, so many at once, into a run folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.store import RunFolder
from fate_gym.rollout import Agent, rollout

OnDone = Callable[[Episode], None]


async def run_plan(
    plan: Plan,
    agent: Agent,
    folder: RunFolder,
    *,
    stop: asyncio.Event | None = None,
    on_done: OnDone = lambda episode: None,
) -> None:
    """Runs what the folder does not hold yet. Earlier failures are tried again.

    Args:
        plan: What to run.
        agent: Who acts.
        folder: Open for writing; every finished episode is in it before the next begins.
        stop: Once set, no further episode begins; those under way end.
        on_done: Called after each episode.

    Raises:
        RunError, OSError: An episode could not be written.
    """
    waiting = iter([item for item in plan.items if item.key not in folder.done])
    workers = [_work(plan, agent, folder, waiting, stop, on_done) for _ in range(plan.config.concurrency)]
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
    except* Exception as failures:
        # A full disk or a damaged folder meets every worker alike: the first to say so says it all.
        raise failures.exceptions[0] from None


async def _work(
    plan: Plan,
    agent: Agent,
    folder: RunFolder,
    waiting: Iterator[Item],
    stop: asyncio.Event | None,
    on_done: OnDone,
) -> None:
    envs: dict[int, ToolEnv] = {}
    for item in waiting:
        if agent.exhausted is not None or (stop is not None and stop.is_set()):
            return
        if item.variant not in envs:
            envs[item.variant] = plan.make_env(item.variant)
        env = envs[item.variant]
        episode = await rollout(env, agent, item.task_id, item.seed, repeat=item.repeat, key=item.key)
        await asyncio.to_thread(folder.append, episode)
        on_done(episode)
