"""Groups of rollouts for policy optimisation: sampled, and sampled again where they carry no signal.

The place ("slot") of a group in the batch decides its seeds and the tasks that may replace it, whichever process
samples it. So several processes sample the same groups as one process would.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fate_gym.episode import Episode, Trajectory
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.rewards import AXES
from fate_gym.rollout import Agent
from fate_gym.trainers.algorithms.advantages import advantages
from fate_gym.trainers.tasks import sample


@dataclass(frozen=True, slots=True)
class Group:
    """Rollouts of one task.

    Attributes:
        trajectories: The token ids of each member, None where its episode errored, (G,).
        vectors: Reward vectors, (G, 4). NaN where an axis is not active, and in the whole row of an unscored member.
        signal: Whether the advantages of its members differ.
        problem: Why a member is not scored; None if all are.
    """

    trajectories: list[Trajectory | None]
    vectors: NDArray[np.float64]
    signal: bool
    problem: str | None


@dataclass(slots=True)
class Tally:
    """Cost and mean rewards of a batch of groups.

    Attributes:
        rollouts: Episodes, those of replaced groups included.
        tokens: Policy tokens in them.
        learned: Tokens of the groups that are kept, prompts included.
        unscored: Episodes without an advantage: errors, and trajectories that are not one sequence.
        signal: Groups with a signal, after refilling.
        refilled: Groups that replaced another one.
        sums: Sum of each axis where it is active, over the groups that were sampled first, (4,).
        counts: Number of values in each sum, (4,).
    """

    rollouts: int = 0
    tokens: int = 0
    learned: int = 0
    unscored: int = 0
    signal: int = 0
    refilled: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(AXES)))
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(AXES)))


def schedule(count: int, steps: int, groups: int, seed: int) -> list[int]:
    """Returns the task (below `count`) of each group of each step: complete passes over all tasks, shuffled anew."""
    order: list[int] = []
    rng = random.Random(f"{seed}/schedule")  # noqa: S311 (no secret)
    while len(order) < steps * groups:
        order += rng.sample(range(count), count)
    return order[: steps * groups]


@dataclass(frozen=True, slots=True)
class GroupSampler:
    """Samples the groups of a step.

    Attributes:
        plan: Makes the environments.
        items: The tasks.
        rule: The advantage rule; a group has a signal if the rule gives its members different advantages.
        group_size: G.
        refills: How often a group without a signal is replaced by a group of another task.
        concurrency: Episodes that run at the same time.
        seed: Together with step and slot it decides every sample.
    """

    plan: Plan
    items: Sequence[Item]
    rule: str
    group_size: int
    refills: int
    concurrency: int
    seed: int

    async def draw(self, agent: Agent, tasks: Sequence[int], step: int, first_slot: int) -> tuple[list[Group], Tally]:
        """Samples groups. Where no attempt gives a group with a signal, the last one is kept.

        Args:
            agent: The policy.
            tasks: Indices of the items that the groups are first sampled from, (n,).
            step: The step of the update, from 0.
            first_slot: The slot of the first of these groups in the whole batch.
        """
        tally = Tally()
        groups: dict[int, Group] = {}
        drawn = {first_slot + index: task for index, task in enumerate(tasks)}
        others = {slot: random.Random(f"{self.seed}/{step}/{slot}") for slot in drawn}  # noqa: S311 (no secret)
        # A group whose members are all equal gives every advantage 0: its rollouts would be paid for and teach nothing.
        for attempt in range(1 + self.refills):
            members = [
                dataclasses.replace(self.items[task], seed=self._seed(step, slot, attempt, member))
                for slot, task in drawn.items()
                for member in range(self.group_size)
            ]
            rollouts = await sample(self.plan, agent, members, concurrency=self.concurrency)
            for index, slot in enumerate(drawn):
                group = self._group(rollouts[index * self.group_size :][: self.group_size])
                _count(tally, group, first=attempt == 0)
                groups[slot] = group
            drawn = {slot: others[slot].randrange(len(self.items)) for slot in drawn if not groups[slot].signal}
            if not drawn:
                break
        # In the order of slots, since TRL expects the rows in the order of the prompts that it passed.
        made = [groups[slot] for slot in sorted(groups)]
        tally.signal = sum(group.signal for group in made)
        kept = [trajectory for group in made for trajectory in group.trajectories if trajectory]
        tally.learned = sum(len(one.prompt_ids) + len(one.completion_ids) for one in kept)
        return made, tally

    def _seed(self, *place: int) -> int:
        # Of step, slot, attempt and member: a resumed update, or one with more processes, samples the same episodes.
        return random.Random("/".join(map(str, (self.seed, *place)))).getrandbits(31)  # noqa: S311 (no secret)

    def _group(self, rollouts: Sequence[Episode]) -> Group:
        trajectories: list[Trajectory | None] = []
        masks = np.zeros((len(rollouts), len(AXES)), dtype=np.bool_)
        problem = None
        for row, result in enumerate(rollouts):
            trajectories.append(result.trajectory)
            # Without one sequence of ids, what was sampled is not what would be trained on.
            if result.trajectory is None:
                problem = result.error or "its turns are not one sequence of sampled token ids"
            else:
                masks[row] = result.verdict.mask
        vectors = np.array([result.verdict.vector for result in rollouts], dtype=np.float64)
        # A member that lacks an axis which others have cannot be compared with them (see `advantages`).
        scored = (masks == masks.any(axis=0)).all(axis=1)
        masks &= scored[:, None]
        signal = bool(advantages(self.rule, vectors, masks, len(rollouts)).any())
        return Group(trajectories, np.where(masks, vectors, np.nan), signal, problem)


def _count(tally: Tally, group: Group, *, first: bool) -> None:
    tally.rollouts += len(group.vectors)
    tally.tokens += sum(sum(made.mask) for made in group.trajectories if made)
    tally.unscored += int(np.isnan(group.vectors).all(axis=1).sum())
    # Replacements are left out of the means: they are drawn because the first group had no signal.
    if first:
        tally.sums += np.nansum(group.vectors, axis=0)
        tally.counts += (~np.isnan(group.vectors)).sum(axis=0)
    else:
        tally.refilled += 1
