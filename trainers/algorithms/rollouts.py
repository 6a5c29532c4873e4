"""Rollouts for `PFPOTrainer`: the episodes of a step, in TRL's format, sampled before it or during the step before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import torch
from datasets import Dataset

from fate_gym.agents import Agent
from fate_gym.episode import Trajectory
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES
from fate_gym.trainers.algorithms.groups import Group, GroupSampler, Tally, schedule
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.policy import Tokenizer
from fate_gym.trainers.processes import meet
from fate_gym.trainers.sampling import Sampler

if TYPE_CHECKING:
    from trl import GRPOTrainer

T = TypeVar("T")

_PAID_ONCE: Final = ("rollouts", "tokens", "unscored", "refilled", "seconds_sampling")
"""What the rollouts of a step cost, however many passes learn from them."""


class Rollouts:
    """TRL's `rollout_func`: runs our episodes with the model that is being trained as the agent.

    Where the sampler overlaps, the rollouts of step n + 1 begin with the weights of before update n, and are sampled
    while it runs; only the first step after a start samples with the very weights that learn from it. The seeds of a
    group follow from its step and slot in either case.

    Args:
        groups: Samples groups with an agent.
        sampler: Makes the agent. Its options must not change the distribution: the loss takes account of the
            temperature alone.
        policy: The weights that the update starts from.
        tokenizer: The policy's tokenizer.
        settings: Of the update.
        is_enough: Told the policy tokens of each step; returns whether it is the last one that they suffice for.
    """

    def __init__(
        self,
        groups: GroupSampler,
        sampler: Sampler,
        policy: str,
        tokenizer: Tokenizer,
        settings: PFPOSettings,
        is_enough: Callable[[int], bool] = lambda tokens: False,
    ) -> None:
        self._groups = groups
        self._sampler = sampler
        self._policy = policy
        self._tokenizer = tokenizer
        self._settings = settings
        self._is_enough = is_enough
        self._schedule = schedule(len(groups.items), settings.steps, settings.groups, settings.seed)
        self._ahead: Background[tuple[list[Group], Tally]] | None = None
        self._measures: dict[str, Any] = {}
        self._last = False

    @property
    def dataset(self) -> Dataset:
        """The task that each group is first sampled from, in the order of training."""
        return Dataset.from_dict({"prompt": [str(task) for task in self._schedule]})

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Returns the rollouts of this process's groups, whose tasks follow from the step."""
        began = time.perf_counter()
        # TRL counts updates; a step of ours is one batch of rollouts, however many passes learn from it.
        step = trainer.state.global_step // self._settings.passes
        if self._ahead is not None:
            groups, tally = self._ahead.result()
            self._ahead = None
        else:
            with self._learner(trainer) as agent:
                groups, tally = asyncio.run(self._draw(agent, trainer, step))
        # Only now do processes wait for each other, however unequal the lengths of their episodes.
        meet()
        seconds = time.perf_counter() - began
        self._measures = {**_measures(tally, len(groups), trainer.accelerator), "seconds_sampling": round(seconds, 4)}
        # Known to all processes now, so that all stop: one alone would leave the others waiting for it.
        if self._measures["unscored"] == self._measures["rollouts"]:
            raise FateGymError(f"no rollout of step {step + 1} could be scored; one of them: {groups[0].problem}")
        # Decided before the update, by what all processes know: nothing is sampled ahead for a step that never comes.
        self._last = self._is_enough(self._measures["tokens"])
        if self._sampler.overlaps and not self._last and step + 1 < self._settings.steps:
            with contextlib.ExitStack() as held:
                agent = held.enter_context(self._learner(trainer))
                self._ahead = Background(self._draw(agent, trainer, step + 1), held.pop_all())
        return _rows(groups, self._tokenizer.eos_token_id)

    def describe(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the record of an update holds besides its loss: see `pfpo.optimise_policy`."""
        measures = {"kl": logs.get("kl", 0.0), "clipped": logs.get("clip_ratio/region_mean", 0.0), **self._measures}
        # A further pass over the same rollouts must not say that they were paid for again.
        self._measures |= dict.fromkeys(_PAID_ONCE, 0)
        # How far the sampler's probabilities are from the trainer's: 1.0 if they are the same.
        if (ratio := logs.get("sampling/importance_sampling_ratio/mean")) is not None:
            measures |= {"ratio": ratio, "cut": logs["sampling/importance_sampling_ratio/cut"]}
        return measures

    def is_last(self, record: Mapping[str, Any]) -> bool:
        """Whether the update with this record is the last one, since the tokens suffice for no further step."""
        return self._last and record["step"] % self._settings.passes == 0

    def close(self) -> None:
        """Stops what is being sampled ahead."""
        if self._ahead is not None:
            self._ahead.cancel()

    def _learner(self, trainer: GRPOTrainer) -> contextlib.AbstractContextManager[Agent]:
        return self._sampler.learner(trainer, self._policy, temperature=trainer.temperature)

    def _draw(self, agent: Agent, trainer: GRPOTrainer, step: int) -> Coroutine[Any, Any, tuple[list[Group], Tally]]:
        """Samples this process's groups of a step."""
        count = self._settings.groups // trainer.accelerator.num_processes
        first_slot = trainer.accelerator.process_index * count
        first = step * self._settings.groups + first_slot
        return self._groups.draw(agent, self._schedule[first : first + count], step, first_slot)


class Background(Generic[T]):
    """Work on an event loop in a thread of its own, while the caller's thread does something else.

    Args:
        work: The work, which begins at once.
        held: What it needs; closed by who waits for its end.
    """

    def __init__(self, work: Coroutine[Any, Any, T], held: contextlib.ExitStack) -> None:
        self._held = held
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work)
        thread = ThreadPoolExecutor(1, "fate-gym-ahead")
        self._ended = thread.submit(self._run)
        thread.shutdown(wait=False)

    def _run(self) -> T:
        try:
            return self._loop.run_until_complete(self._task)
        finally:
            # Tools that still run in threads end first, as `asyncio.run` has it.
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def result(self) -> T:
        """Waits for the work's end, and returns what it returned.

        Raises:
            Exception: What it raised.
        """
        with self._held:
            return self._ended.result()

    def cancel(self) -> None:
        """Stops the work, and returns when it has ended."""
        with self._held:
            # The loop is closed where the work has ended already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)
            wait([self._ended])


def _measures(tally: Tally, groups: int, accelerator: Any) -> dict[str, Any]:
    """A step's measures over all processes."""
    own = [tally.rollouts, tally.tokens, tally.learned, tally.unscored, tally.refilled, tally.signal, groups]
    local = torch.tensor([*own, *tally.sums, *tally.counts], dtype=torch.float64)
    rollouts, tokens, learned, unscored, refilled, signal, groups_in_all, *axes = accelerator.reduce(
        local.to(accelerator.device)
    ).tolist()
    sums, counts = axes[: len(AXES)], axes[len(AXES) :]
    return {
        "vector": {
            axis: total / count if count else None for axis, total, count in zip(AXES, sums, counts, strict=True)
        },
        "signal": signal / groups_in_all,
        "rollouts": int(rollouts),
        "tokens": int(tokens),
        "learned": int(learned),
        "unscored": int(unscored),
        "refilled": int(refilled),
    }


def _rows(groups: Sequence[Group], filler: int) -> dict[str, Any]:
    """Returns groups in TRL's format. A member without a trajectory is one masked token: TRL counts on every row."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "vector")
    }
    for group in groups:
        for made, vector in zip(group.trajectories, group.vectors.tolist(), strict=True):
            made = made or Trajectory([filler], [filler], [0], [0.0])
            rows["prompt_ids"].append(made.prompt_ids)
            rows["completion_ids"].append(made.completion_ids)
            rows["logprobs"].append(made.logprobs)
            rows["env_mask"].append(made.mask)
            rows["vector"].append([None if value != value else value for value in vector])
    return rows
