"""The tasks of a training: sets of them in a configuration, and the pool of episodes that the sets make."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fate_gym.agents import Agent
from fate_gym.agents.scripted import NOOP
from fate_gym.chat import Json
from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.plan import DEFAULT_ENV, Attack, Plan
from fate_gym.rollout import rollout
from fate_gym.task import Purpose, Task


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks of one environment, under each of some attacks.

    Attributes:
        env: Gymnasium id.
        attack: Attacks, each over all the tasks; None leaves the environment its default.
        env_args: Further arguments of the environment, such as its suite and split.
        tasks: Only tasks whose ids match one of these patterns (`fnmatch`); None for all.
        exclude: Tasks that match one of these are left out, of training sets those that pass by doing nothing.
        repeats: Episodes for each task and attack.
    """

    env: str = DEFAULT_ENV
    attack: tuple[Attack, ...] | None = None
    env_args: dict[str, Json] = field(default_factory=dict)
    tasks: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One episode to sample.

    Attributes:
        key: Its identity: `ATTACK/TASK_ID#REPEAT`.
        variant: Which environment of the pool it runs in.
        task_id: The task.
        repeat: Which of the repeats of its task it is, from 0.
        seed: The episode's seed.
    """

    key: str
    variant: int
    task_id: str
    repeat: int
    seed: int


class TaskPool:
    """The episodes of some task sets, and environments to run them in.

    Args:
        task_sets: At least one.
        seed: Every episode's seed is derived from it.
        purpose: "training" for all that a model may learn from; environments that forbid it then raise.

    Raises:
        FateGymError: A benchmark may not be trained on.
        ValueError: No task is left, or two sets hold the same task under the same attack.
        TypeError, gymnasium.error.Error: An environment cannot be made with these settings.
    """

    def __init__(self, task_sets: Sequence[TaskSet], seed: int, *, purpose: Purpose) -> None:
        self._variants: list[tuple[Plan, int]] = []
        items: dict[str, Item] = {}
        for task_set in task_sets:
            plan, first = _plan(task_set, seed, purpose), len(self._variants)
            self._variants += [(plan, variant) for variant in range(len(task_set.attack or (None,)))]
            for planned in plan.items:
                if any(fnmatch.fnmatchcase(planned.task_id, pattern) for pattern in task_set.exclude):
                    continue
                if planned.key in items:
                    raise ValueError(f"two task sets hold {planned.key}: a task may stand in one of them")
                items[planned.key] = Item(
                    planned.key, first + planned.env_index, planned.task_id, planned.repeat, planned.seed
                )
        if not items:
            raise ValueError("no task is left to roll out: check `tasks` and `exclude` of the task sets")
        self.items = tuple(items.values())

    def env(self, variant: int) -> ToolEnv:
        """Makes one more environment of a variant; it shares the benchmark and its caches, so this is cheap."""
        plan, of_plan = self._variants[variant]
        return plan.make_env(of_plan)

    def task(self, item: Item) -> Task:
        """Describes an item's task, without its ground truth."""
        return self.env(item.variant).task(item.task_id)


def _plan(task_set: TaskSet, seed: int, purpose: Purpose) -> Plan:
    """An evaluation's plan has the keys, seeds and environments that training needs as well."""
    settings = EvalConfig(
        agent="policy",
        env=task_set.env,
        attack=task_set.attack and tuple(None if attack == "none" else attack for attack in task_set.attack),
        env_args={**task_set.env_args, "purpose": purpose},
        tasks=task_set.tasks,
        seed=seed,
        repeats=task_set.repeats,
    )
    return settings.plan()


OnDone = Callable[[Item, Episode], None]


async def sample(
    pool: TaskPool,
    agent: Agent | Callable[[Item], Agent],
    items: Sequence[Item],
    *,
    concurrency: int = 128,
    on_done: OnDone = lambda item, result: None,
) -> list[Episode]:
    """Runs episodes, many at once, and returns them in the order of `items`.

    Args:
        pool: Makes the environments.
        agent: Who acts, or a function that says who acts in an item's episode.
        items: The episodes; equal ones are different episodes.
        concurrency: Episodes under way at once.
        on_done: Called after each episode, in the order in which they end; what it raises ends the sampling.
    """
    results: list[Episode | None] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def work() -> None:
        envs: dict[int, ToolEnv] = {}
        for index, item in waiting:
            if item.variant not in envs:
                envs[item.variant] = pool.env(item.variant)
            actor = agent if isinstance(agent, Agent) else agent(item)
            results[index] = result = await rollout(
                envs[item.variant], actor, item.task_id, item.seed, repeat=item.repeat, key=item.key
            )
            on_done(item, result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(work())
    except* Exception as failures:
        # A full disk meets every worker alike: the first to say so says it all.
        raise failures.exceptions[0] from None
    return [result for result in results if result is not None]


def noop_tasks(pool: TaskPool) -> frozenset[str]:
    """Returns the clusters (user tasks) that pass by doing nothing: success there says nothing.

    One episode a cluster is played, since injections do not change what the user asked for.
    """
    first: dict[str, Item] = {}
    for item in pool.items:
        task = pool.task(item)
        first.setdefault(task.cluster, item)
    results = asyncio.run(sample(pool, NOOP, list(first.values())))
    axes = {result.cluster: result.verdict.utility for result in results}
    return frozenset(cluster for cluster, axis in axes.items() if axis.active and axis.value == 1.0)
