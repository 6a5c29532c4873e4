"""What trainers roll out and keep: pools of tasks, sampling, trajectories as token ids, episodes as records."""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fate_gym.agents import Agent
from fate_gym.chat import Json, Message
from fate_gym.env import ToolEnv
from fate_gym.episode import Episode as Rollout
from fate_gym.episode import Trajectory
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.plan import DEFAULT_ENV, Attack, Plan
from fate_gym.rollout import rollout
from fate_gym.task import Mode, Purpose, Task


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
        seed: The episode's seed.
        mode: The task's.
    """

    key: str
    variant: int
    task_id: str
    seed: int
    mode: Mode


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
                mode = plan.make_env(planned.env_index).task(planned.task_id).mode
                item = Item(planned.key, first + planned.env_index, planned.task_id, planned.seed, mode)
                items[item.key] = item
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


OnDone = Callable[[Item, Rollout], None]


async def sample(
    pool: TaskPool,
    agent: Agent | Callable[[Item], Agent],
    items: Sequence[Item],
    *,
    concurrency: int = 128,
    on_done: OnDone = lambda item, result: None,
) -> list[Rollout]:
    """Runs episodes, many at once, and returns them in the order of `items`.

    Args:
        pool: Makes the environments.
        agent: Who acts, or a function that says who acts in an item's episode.
        items: The episodes; equal ones are different episodes.
        concurrency: Episodes under way at once.
        on_done: Called after each episode, in the order in which they end; what it raises ends the sampling.
    """
    results: list[Rollout | None] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def work() -> None:
        envs: dict[int, ToolEnv] = {}
        for index, item in waiting:
            if item.variant not in envs:
                envs[item.variant] = pool.env(item.variant)
            actor = agent if isinstance(agent, Agent) else agent(item)
            results[index] = result = await rollout(envs[item.variant], actor, item.task_id, item.seed)
            on_done(item, result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(work())
    except* Exception as failures:
        # A full disk meets every worker alike: the first to say so says it all.
        raise failures.exceptions[0] from None
    return [result for result in results if result is not None]


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode as stage files hold it.

    Attributes:
        key: The item's.
        task_id: The task.
        variant: Which environment of the pool it ran in.
        seed: The episode's seed.
        mode: The task's.
        suite: The task's.
        attack: The attack's name, or None.
        cluster: The task's.
        split: The task's label in its benchmark's split file, where there is one.
        status: "ok", or why it is not scored.
        vector: The reward vector in the order of `fate_gym.rewards.AXES`, (4,).
        mask: Which axes count, (4,).
        reached: Whether an injected text stood in a tool's output.
        ended: Why the episode is over ("answer", "max_turns", ...).
        verdict: Rules, judges and their evidence, as JSON. Evidence may quote the graders: it goes into no prompt.
        messages: The conversation.
        x_ids: The plain task as the policy reads it, up to its first turn; () if the agent gave no token ids.
        trajectory: The token ids; None if the agent gave none, or its chat template rewrites the past.
        contaminated_by: What the task marks every model with that learns from it.
    """

    key: str
    task_id: str
    variant: int
    seed: int
    mode: Mode
    suite: str
    attack: str | None
    cluster: str
    split: str | None
    status: str
    vector: tuple[float, ...]
    mask: tuple[bool, ...]
    reached: bool
    ended: str | None
    verdict: dict[str, Json]
    messages: list[Message]
    x_ids: list[int]
    trajectory: Trajectory | None
    contaminated_by: tuple[str, ...] = ()

    @property
    def item(self) -> Item:
        """The episode as one to sample again."""
        return Item(self.key, self.variant, self.task_id, self.seed, self.mode)

    @property
    def written(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.trajectory.mask) if self.trajectory else 0

    @classmethod
    def from_rollout(cls, item: Item, result: Rollout, *, x_ids: Sequence[int] | None = None) -> Episode:
        """Keeps what later stages read.

        Args:
            item: What was sampled.
            result: What came of it.
            x_ids: The plain task's prompt, where the episode began from another one.
        """
        if x_ids is None:
            x_ids = result.trajectory.prompt_ids if result.trajectory else ()
        axes = result.verdict.axes.values()
        return cls(
            key=item.key,
            task_id=item.task_id,
            variant=item.variant,
            seed=item.seed,
            mode=item.mode,
            suite=result.suite,
            attack=result.attack,
            cluster=result.cluster,
            split=_text(result.metadata.get("split")),
            status=result.status,
            vector=tuple(float(axis.value) for axis in axes),
            mask=tuple(axis.active for axis in axes),
            reached=result.injection_reached,
            ended=result.ended,
            verdict=result.verdict.to_json(),
            messages=result.messages,
            x_ids=list(x_ids),
            trajectory=result.trajectory,
            contaminated_by=tuple(_names(result.metadata.get("contaminated_by"))),
        )

    def to_json(self) -> dict[str, Json]:
        """As it stands in a stage file.

        Log-probabilities have four decimals: the last bits depend on who shared a batch, and would make each run's
        bytes its own.
        """
        record = dataclasses.asdict(self)
        if self.trajectory is not None:
            record["trajectory"]["logprobs"] = [round(logprob, 4) for logprob in self.trajectory.logprobs]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Episode:
        """Reads what `to_json` gave; other keys of the record are not looked at."""
        values = {entry.name: record[entry.name] for entry in dataclasses.fields(cls)}
        for name in ("vector", "mask", "contaminated_by"):
            values[name] = tuple(values[name])
        if values["trajectory"] is not None:
            values["trajectory"] = Trajectory(**values["trajectory"])
        return cls(**values)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _names(value: object) -> Iterator[str]:
    """One name or several."""
    if isinstance(value, list | tuple):
        yield from map(str, value)
    elif value:
        yield str(value)
