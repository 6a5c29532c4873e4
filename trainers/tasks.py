"""The tasks of a training: its plan, which of them an agent passes by doing nothing, and rollouts in order."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from fate_gym.agents import Agent
from fate_gym.agents.scripted import NOOP
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item, Plan, TaskSet
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.workers import InProcess


def training_plan(task_sets: Sequence[TaskSet], seed: int) -> Plan:
    """Makes the plan of tasks that a model will learn from.

    Args:
        task_sets: At least one.
        seed: Every episode's seed is derived from it.

    Raises:
        FateGymError: A benchmark may not be trained on.
        ValueError: No task is left, or two sets hold the same task under the same attack.
        TypeError, gymnasium.error.Error: An environment cannot be made with these settings.
    """
    # Whatever the settings say: an environment that forbids training must see that this is one.
    sets = [dataclasses.replace(one, env_args={**one.env_args, "purpose": "training"}) for one in task_sets]
    return Plan(sets, seed)


async def sample(plan: Plan, agent: Agent, items: Sequence[Item], *, concurrency: int = 128) -> list[Episode]:
    """Runs episodes, many at once, and returns them in the order of `items`.

    Args:
        plan: Makes the environments.
        agent: The agent.
        items: The episodes, each an object of its own.
        concurrency: Episodes that run at the same time.
    """
    # By identity: items may be equal, and are still different episodes; and a plan makes each when it is asked for.
    items = list(items)
    place = {id(item): index for index, item in enumerate(items)}
    episodes: dict[int, Episode] = {}

    async def keep(item: Item, episode: Episode) -> None:
        episodes[place[id(item)]] = episode

    workers = InProcess(Player(plan.environments, agent, lambda episode: episode))
    await run_episodes(items, workers, concurrency=min(concurrency, len(items)), on_done=keep)
    return [episodes[index] for index in range(len(items))]


def idle_tasks(plan: Plan) -> frozenset[str]:
    """Returns the clusters (user tasks) that an agent passes by doing nothing: success there says nothing.

    One episode per cluster is played, since injections do not change what the user asked for.
    """
    first: dict[str, Item] = {}
    for item in plan.items:
        first.setdefault(plan.task(item).cluster, item)
    episodes = asyncio.run(sample(plan, NOOP, list(first.values())))
    axes = {episode.cluster: episode.verdict.utility for episode in episodes}
    return frozenset(cluster for cluster, axis in axes.items() if axis.active and axis.value == 1.0)
