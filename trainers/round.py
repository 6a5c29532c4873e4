"""One round of a training, as its stages see it: settings, tasks, seeds, and the files that they leave.

`fate.evolve` passes values from stage to stage. What lies here is no part of the method: that each stage also writes a
file, finds what an interrupted start had done, and can run alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from fate_gym.agents import Agent
from fate_gym.chat import Json
from fate_gym.errors import RunError
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.storage import encode_line, file_digest, folder_digest, make_folder, replace_file
from fate_gym.trainers.algorithms.update_folder import Numbers, OnStep, read_numbers, read_steps
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.methods import StageName
from fate_gym.trainers.processes import first_alone, is_first_process, meet
from fate_gym.trainers.progress import axes_line
from fate_gym.trainers.sampling import Sampler
from fate_gym.trainers.stage_file import StageFile, Upgrade, read_header
from fate_gym.trainers.tasks import idle_tasks, training_plan

FileStage: TypeAlias = Literal["collect", "repair", "select"]
UpdateStage: TypeAlias = Literal["warmup", "pfpo"]

FILES: Final[Mapping[FileStage, tuple[str, str]]] = {
    "collect": ("collect.jsonl", "fate-gym/train-collect/2"),
    "repair": ("repairs.jsonl", "fate-gym/train-repair/2"),
    "select": ("selected.jsonl", "fate-gym/train-select/2"),
}
"""Name and schema of the file that a stage leaves; "warmup" and "pfpo" leave a folder with a policy."""


SAMPLING: Final[tuple[StageName, ...]] = ("collect", "repair", "pfpo")
"""The stages in which the policy is sampled, in their order: what a budget counts."""

_MOST_PASSES: Final = 32
"""Most passes over the training tasks where the collection of successes takes what a budget leaves."""

_REQUIRED: Final[Mapping[StageName, tuple[str, ...]]] = {
    "collect": ("records", "tokens"),
    "repair": ("records", "tokens"),
    "select": ("records", "chosen"),
    "warmup": ("steps", "tokens"),
    "pfpo": ("steps", "tokens", "rollouts"),
}


class Round:
    """What the stages of one round share.

    Args:
        folder: The training.
        number: The round, counted from 1.
        only: The one stage that may run; files of the others are only read. None lets every stage run.
        sampler: Who samples the policy; None for the training's own.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        number: int,
        *,
        only: StageName | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.folder, self.number = folder, number
        self.config, self.method, self.progress = folder.config, folder.config.active_method, folder.progress
        self.path = folder.out / f"round-{number}"
        self._only = only
        self.sampler = sampler or folder.sampler

    @functools.cached_property
    def plan(self) -> Plan:
        """The training tasks, with the seeds of this round."""
        excluded = self.config.excluded_tasks
        passes = _MOST_PASSES if self.takes_the_rest("collect") else 1
        sets = [
            dataclasses.replace(one, exclude=(*one.exclude, *excluded), repeats=passes * one.repeats)
            for one in self.config.train
        ]
        return training_plan(sets, self.seed("collect"))

    @functools.cached_property
    def items(self) -> list[Item]:
        """The episodes to roll out: those of the plan, without the tasks that an agent passes by doing nothing.

        Under a budget the first repeat of every task comes first, then the second: wherever the tokens end, no task has
        had two repeats more than another.

        Raises:
            ValueError: No other task is there.
        """
        kept = list(self.plan.items)
        if self.config.collect.leave_out_noop:
            idle = idle_tasks(self.plan)
            kept = [item for item in kept if self.plan.task(item).cluster not in idle]
            if not kept:
                raise ValueError(
                    "doing nothing passes all training tasks: set collect.leave_out_noop=false to use them"
                )
        return sorted(kept, key=lambda item: item.repeat) if self.takes_the_rest("collect") else kept

    def takes_the_rest(self, stage: StageName) -> bool:
        """Whether a stage takes what a budget leaves to the round, instead of what the settings alone say."""
        return self.config.budget is not None and stage == self.method.elastic

    def tokens_for(self, stage: StageName) -> int | None:
        """Returns how many policy tokens a stage may sample; None without a budget.

        One stage takes what is left of the round's share; the others may take all that is left of the budget, which
        few settings let them reach.

        Raises:
            RunError: A stage before it, in this round or an earlier one, is not finished.
        """
        if self.config.budget is None:
            return None
        before = sum(self._tokens(other) for other in SAMPLING[: SAMPLING.index(stage)])
        left = self.tokens_left()
        share = left // (self.config.rounds - self.number + 1) if self.takes_the_rest(stage) else left
        return max(0, share - before)

    def tokens_left(self) -> int:
        """Returns what earlier rounds left of the budget, which may be less than nothing.

        Raises:
            RunError: A stage of an earlier round is not finished.
            ValueError: There is no budget.
        """
        if self.config.budget is None:
            raise ValueError("the training has no budget")
        return self.config.budget - sum(Round(self.folder, number).sampled() for number in range(1, self.number))

    def sampled(self) -> int:
        """Returns the policy tokens that the stages of this round sampled.

        Raises:
            RunError: A stage is not finished.
        """
        return sum(self._tokens(stage) for stage in SAMPLING)

    def _tokens(self, stage: StageName) -> int:
        return int((self.outcome(stage) or {}).get("tokens", 0))

    @property
    def provenance(self) -> dict[str, Json]:
        """What every checkpoint of this round says of its making."""
        return {"base": self.folder.base, "method": self.config.method, "round": self.number}

    def seed(self, stage: str) -> int:
        """Returns the seed of a stage, which follows from the training's seed and the round."""
        place = f"{self.config.seed}/{self.number}/{stage}"
        # 31 bits: torch and numpy both take them as a seed.
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big") >> 1

    def inputs(self, policy: str) -> dict[str, Json]:
        """Returns what the rollouts of a policy depend on. A folder's content counts, not its place."""
        # An id on the hub has no content here; its files are fetched when the policy is loaded.
        weights = folder_digest(Path(policy)) if Path(policy).is_dir() else policy
        return {"policy": weights, "seed": self.config.seed, "round": self.number, "agent": self.config.agent}

    def digest(self, stage: FileStage) -> str:
        """Returns the digest of the file of a finished stage."""
        return file_digest(self.path / FILES[stage][0])

    @contextlib.contextmanager
    def agent(self, policy: str, stage: FileStage) -> Iterator[Agent]:
        """Makes the agent that plays a policy, closes it at the end, and records the time."""
        # At temperature 1, as the method's pi samples.
        agent = self.sampler.agent(policy, temperature=1.0, seed=self.seed(stage))
        with self.folder.timed(stage, self.number):
            try:
                yield agent
            finally:
                # The model leaves memory before the next stage loads another one.
                asyncio.run(agent.aclose())

    @contextlib.contextmanager
    def stage_file(
        self, stage: FileStage, inputs: Mapping[str, Json], upgrade: Upgrade = lambda inputs: inputs
    ) -> Iterator[StageFile]:
        """Opens the file of a stage: that of the first process, and when it is finished that of the others.

        Raises:
            RunError: It is not finished, and the stage may not run.
        """
        name, schema = FILES[stage]
        with first_alone():
            file = StageFile(self.path / name, schema, inputs, upgrade)
            if file.finished is None and self._only not in (None, stage):
                raise RunError(f"there is no {file.path}: run the stage that writes it first")
            with file:
                yield file

    @contextlib.contextmanager
    def update(self, stage: UpdateStage, total: int = 0) -> Iterator[OnStep]:
        """Records the time of an update of the weights, and yields the function that reports its steps.

        It ends when every process finds all that the update leaves.
        """
        done = len(read_steps(self.path / stage))
        with self.folder.timed(stage, self.number), self.progress.stage(stage, total, done):
            yield lambda step: self.progress.advance(_step_line(step))
        meet()

    def skip(self, stage: UpdateStage, reason: str) -> None:
        """Records that an update does not take place."""
        with first_alone():
            make_folder(self.path / stage)
            if is_first_process():
                replace_file(self.path / stage / "skipped.json", encode_line({"reason": reason}))
        self.progress.say(f"round {self.number}: no {stage}, {reason}")

    def policy_after(self, stage: UpdateStage, before: str) -> str:
        """Returns the policy that a stage left.

        Args:
            stage: The stage.
            before: The policy before it, which stays where there is no such update, or it was skipped.

        Raises:
            RunError: The stage is not finished.
        """
        if not self.method.has_stage(stage):
            return before
        out = self.path / stage
        if read_numbers(out) is not None:
            return str(out)
        if (out / "skipped.json").exists():
            return before
        raise RunError(f"there is no policy in {out}: run stage {stage} of round {self.number} first")

    def outcome(self, stage: StageName) -> Numbers | None:
        """Returns the counts of a finished stage; None if the method has no such stage, or it was skipped.

        Raises:
            RunError: The stage is not finished, or its file is damaged.
        """
        if not self.method.has_stage(stage):
            return None
        if stage == "warmup" or stage == "pfpo":
            counts = read_numbers(self.path / stage)
            if counts is None:
                return None
        else:
            name, schema = FILES[stage]
            counts = read_header(self.path / name, schema).object("counts")
        # What sums and tables rely on is checked here, so that nobody else meets a damaged file.
        for required in _REQUIRED[stage]:
            counts.integer(required)
        return counts.values


def _step_line(step: Mapping[str, Any]) -> str:
    """A step for people: the mean axes of its rollouts, beside which the loss of PFPO says little, or else its loss."""
    if step.get("vector"):
        return f"{axes_line(step['vector'])} signal {step['signal']:.2f}"
    return f"loss {step['loss']:.3f}"
