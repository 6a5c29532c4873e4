"""Which episodes there are to run, each with its key and seed, and the environments to run them in."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, overload

from fate_gym.attack import Attack
from fate_gym.benchmark import Benchmark
from fate_gym.catalogue import make_environment
from fate_gym.chat import Json
from fate_gym.env import ToolEnv
from fate_gym.errors import did_you_mean
from fate_gym.evaluation.keys import Keys
from fate_gym.rollout import episode_key
from fate_gym.task import Task

DEFAULT_ENV: Final = "fate/AgentDojo-v0"


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks of one environment, under each of some attacks.

    Attributes:
        env: Gymnasium id.
        attack: Attacks, each over all the tasks; None leaves the environment its default.
        env_args: Further arguments of the environment, such as its suite and split.
        tasks: Only tasks whose ids match one of these patterns (`fnmatch`); None for all.
        exclude: Tasks that match one of these patterns are left out.
        repeats: Episodes for each task and attack.
        limit: At most so many tasks for each attack, drawn by the seed; a larger limit adds to a smaller one's.
    """

    env: str = DEFAULT_ENV
    attack: tuple[Attack, ...] | None = None
    env_args: dict[str, Json] = field(default_factory=dict)
    tasks: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    repeats: int = 1
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One episode to run.

    Attributes:
        key: Its identity: `ATTACK/TASK_ID#REPEAT`.
        env_index: Index of its environment in the plan; there is one for each attack of each task set.
        task_id: The task.
        repeat: Which of the repeats of its task, from 0.
        seed: The episode's seed.
    """

    key: str
    env_index: int
    task_id: str
    repeat: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Planned:
    """A task with its repeats.

    Attributes:
        env_index: As of its items.
        task: The task.
        seed: The plan's.
        repeats: How many.
    """

    env_index: int
    task: Task
    seed: int
    repeats: int

    @property
    def name(self) -> str:
        """What the keys of all repeats begin with."""
        return self.key(0).removesuffix("#0")

    def key(self, repeat: int) -> str:
        return episode_key(self.task, repeat)

    def item(self, repeat: int) -> Item:
        seed = _hash(self.seed, self.task.attack or "none", self.task.id, repeat) % 2**31
        return Item(self.key(repeat), self.env_index, self.task.id, repeat, seed)


class Items(Sequence[Item]):
    """The episodes of a plan, each made when it is asked for: a plan of many repeats would not be small.

    Args:
        planned: The tasks, in order.
    """

    def __init__(self, planned: Sequence[_Planned]) -> None:
        self._planned = planned
        self._ends = list(accumulate(each.repeats for each in planned))

    @property
    def keys(self) -> Keys:
        """Their keys, in order."""
        return Keys.of_repeats((each.name, each.repeats) for each in self._planned)

    def without(self, done: Keys) -> Iterator[Item]:
        """Yields those whose keys are not among some, in order."""
        planned = {each.name: each for each in self._planned}
        for key in self.keys.minus(done):
            name, _, repeat = key.rpartition("#")
            yield planned[name].item(int(repeat))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        place = range(len(self))[index]
        which = bisect(self._ends, place)
        return self._planned[which].item(place - self._ends[which] + self._planned[which].repeats)

    def __iter__(self) -> Iterator[Item]:
        return (each.item(repeat) for each in self._planned for repeat in range(each.repeats))


class Plan:
    """The episodes of some task sets, and environments to run them in.

    Args:
        task_sets: At least one.
        seed: Every episode's seed is derived from it.

    Attributes:
        items: The episodes, those of one environment together.

    Raises:
        ValueError: No task is left, a pattern of `tasks` matches none, or two sets hold the same task under the same
            attack.
        FateGymError: A benchmark may not be used for this purpose, or its data are not at hand.
        TypeError: An environment cannot be made with these settings.
    """

    def __init__(self, task_sets: Sequence[TaskSet], seed: int) -> None:
        self._envs: list[ToolEnv] = []
        planned: dict[str, _Planned] = {}
        for task_set in task_sets:
            for attack in (None,) if task_set.attack is None else task_set.attack:
                arguments = {} if task_set.attack is None else {"attack": None if attack == "none" else attack}
                self._envs.append(make_environment(task_set.env, {**task_set.env_args, **arguments}))
                for each in self._tasks(task_set, seed):
                    if (key := each.key(0)) in planned:
                        raise ValueError(f"two task sets hold {key}: a task may stand in one of them")
                    planned[key] = each
            self._check_patterns(task_set)
        if not planned:
            raise ValueError(
                f"no task of {', '.join(sorted({task_set.env for task_set in task_sets}))} is left: check the patterns "
                "in `tasks` (in training also `exclude`); `fate-gym tasks` lists the ids"
            )
        self._planned = planned
        self.items = Items(tuple(planned.values()))

    @property
    def environments(self) -> tuple[ToolEnv, ...]:
        """One environment for each attack of each task set."""
        return tuple(self._envs)

    @property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """The benchmark of each environment."""
        return tuple(env.benchmark for env in self._envs)

    def find(self, key: str) -> Item | None:
        """Returns the item of a key; None if it has none."""
        name, _, number = key.rpartition("#")
        found = self._planned.get(f"{name}#0")
        # Compared again, since "01" is a number too.
        if found is None or not number.isdecimal() or len(number) > len(str(found.repeats)):
            return None
        repeat = int(number)
        return found.item(repeat) if repeat < found.repeats and found.key(repeat) == key else None

    def make_env(self, env_index: int) -> ToolEnv:
        """Makes one more environment; it shares the benchmark and its caches with the others, so this is cheap."""
        return another(self._envs[env_index])

    def task(self, item: Item) -> Task:
        """Returns an item's task, without its ground truth."""
        return self._envs[item.env_index].task(item.task_id)

    def has_tools(self) -> bool:
        """Whether any of the environments gives its agent tools."""
        firsts = {each.env_index: each.task.id for each in reversed(self._planned.values())}
        for env_index, task_id in firsts.items():
            # An environment that cannot even begin ends its own episodes as errors, not the whole run.
            with contextlib.suppress(Exception):
                if "tools" in self._envs[env_index].reset(seed=0, options={"task_id": task_id})[0]:
                    return True
        return False

    def _check_patterns(self, task_set: TaskSet) -> None:
        """Refuses a pattern that matches no task under any attack of its set: it was meant to match one."""
        ids = dict.fromkeys(task_id for env in self._envs[-len(task_set.attack or (None,)) :] for task_id in env.tasks)
        for pattern in task_set.tasks or ():
            if not any(_matches(task_id, [pattern]) for task_id in ids):
                near = did_you_mean(pattern, ids) or f"; the first is {next(iter(ids))}"
                raise ValueError(f"no task of {task_set.env} matches {pattern!r}{near}; `fate-gym tasks` lists them")

    def _tasks(self, task_set: TaskSet, seed: int) -> Iterator[_Planned]:
        """Yields the tasks of the environment that was made last."""
        env_index, env = len(self._envs) - 1, self._envs[-1]
        matching = [task_id for task_id in env.tasks if task_set.tasks is None or _matches(task_id, task_set.tasks)]
        # Drawn by a hash of the name, so that other tasks, or another limit, change the place of none.
        drawn = set(sorted(matching, key=lambda task_id: _hash(seed, task_id))[: task_set.limit])
        for task_id in env.tasks:
            if task_id not in drawn or _matches(task_id, task_set.exclude):
                continue
            yield _Planned(env_index, env.task(task_id), seed, task_set.repeats)


def another(env: ToolEnv) -> ToolEnv:
    """Makes an environment like a given one, without its episode; they share the benchmark."""
    return ToolEnv(
        env.benchmark,
        max_turns=env.max_turns,
        max_messages=env.max_messages,
        system_prompt=env.system_prompt,
        verbatim=env.verbatim,
    )


def _matches(task_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(task_id, pattern) for pattern in patterns)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
