"""Episodes as training keeps them: token ids, reward vectors, and the conversation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from fate_gym.chat import Json, Message
from fate_gym.episode import Episode as Rollout
from fate_gym.episode import Trajectory
from fate_gym.storage import Fields
from fate_gym.task import Mode
from fate_gym.trainers.marks import Origin
from fate_gym.trainers.tasks import Item


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
    def policy_tokens(self) -> int:
        """Number of policy tokens."""
        return sum(self.trajectory.mask) if self.trajectory else 0

    @property
    def origin(self) -> Origin:
        """Where the task comes from."""
        return Origin(self.suite, self.split, self.contaminated_by)

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
        origin = Origin.of(result.suite, result.metadata)
        return cls(
            key=item.key,
            task_id=item.task_id,
            variant=item.variant,
            seed=item.seed,
            mode=item.mode,
            suite=result.suite,
            attack=result.attack,
            cluster=result.cluster,
            split=origin.split,
            status=result.status,
            vector=tuple(float(axis.value) for axis in axes),
            mask=tuple(axis.active for axis in axes),
            reached=result.injection_reached,
            ended=result.ended,
            verdict=result.verdict.to_json(),
            messages=result.messages,
            x_ids=list(x_ids),
            trajectory=result.trajectory,
            contaminated_by=origin.contaminated_by,
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
    def from_json(cls, record: Fields) -> Episode:
        """Reads what `to_json` returned. Other keys of the record are ignored.

        Raises:
            RunCorruptError: A field is missing or has another type.
        """
        return cls(
            key=record.text("key"),
            task_id=record.text("task_id"),
            variant=record.integer("variant"),
            seed=record.integer("seed"),
            mode=cast(Mode, record.text("mode")),
            suite=record.text("suite"),
            attack=record.text_or_none("attack"),
            cluster=record.text("cluster"),
            split=record.text_or_none("split"),
            status=record.text("status"),
            vector=tuple(_list(record, "vector", (int, float), "must hold numbers")),
            mask=tuple(_list(record, "mask", (bool,), "must hold true or false")),
            reached=record.flag("reached"),
            ended=record.text_or_none("ended"),
            verdict=record.object("verdict").values,
            messages=[message.values for message in record.objects("messages")],
            x_ids=_list(record, "x_ids", (int,), "must hold integers"),
            trajectory=None if record.values.get("trajectory") is None else _trajectory(record.object("trajectory")),
            contaminated_by=tuple(record.texts("contaminated_by")),
        )


def _list(record: Fields, name: str, kinds: tuple[type, ...], problem: str) -> list[Any]:
    values = record.items(name)
    if any(type(value) not in kinds for value in values):
        raise record.problem(name, problem)
    return values


def _trajectory(fields: Fields) -> Trajectory:
    ids, mask = (_list(fields, name, (int,), "must hold integers") for name in ("completion_ids", "mask"))
    logprobs = _list(fields, "logprobs", (int, float), "must hold numbers")
    if not len(ids) == len(mask) == len(logprobs):
        raise fields.problem("mask", "must have a mask and a log-probability for each token")
    return Trajectory(_list(fields, "prompt_ids", (int,), "must hold integers"), ids, mask, logprobs)
