"""The finished episode: one type and one codec, whoever runs, stores, scores or shows it.

Run folders come from strangers too. `Episode.from_json` therefore refuses whatever `Episode.to_json` would not write,
so that nobody else has to expect a verdict of NaN or a message that is a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NoReturn, get_args

from fate_gym._stored_messages import read_messages
from fate_gym.chat import Json, Message
from fate_gym.rewards import AXES, AxisVerdict, Verdict
from fate_gym.storage import Fields
from fate_gym.transcript import Outcome, Status

SCHEMA: Final = "fate-gym/episode/1"
"""What a stored episode has under `schema`."""

MAX_COUNT: Final = 10**15
"""Tokens, dollars, seconds or attempts of an episode beyond this are absurd, and sums of them would overflow."""

LEFT_OUT: Final = "left_out"
"""The key of `Episode.usage` that counts the figures left out: no sane numbers, or of a name not in `USAGE`."""

USAGE: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_usd")
"""Figures that a reply may report. Prompts include what was cached, completions the reasoning; costs are in USD."""

_USAGE: Final = frozenset({*USAGE, LEFT_OUT})
_TIMES: Final = dict.fromkeys(("total", "agent")).keys()

_LABELS: Final = ("risk_source", "failure_mode", "real_world_harm")
_SHARES: Final = frozenset(
    ("harm_low", "harm_high", "score_low", "score_high", "refused", "unsafe", "flagged", *_LABELS)
)
"""Measures that are shares: metrics take their means."""

_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
_OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class Call:
    """A requested call; its arguments and its answer stand in the messages.

    Attributes:
        turn: Index of the assistant message that asked for it.
        id: The id that request and answer share.
        name: The tool's name as given.
        outcome: What became of it.
    """

    turn: int
    id: str
    name: str
    outcome: Outcome

    @property
    def executed(self) -> bool:
        """Whether the tool ran."""
        return self.outcome in ("ok", "tool_error")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a local model sampled in one turn; training appends these ids and never tokenises them again.

    Attributes:
        prompt_ids: Token ids that it was given, (p,).
        token_ids: Token ids that it sampled, end-of-turn token included, (t,).
        logprobs: Natural-log probability of each sampled id under the sampling distribution, (t,).
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """What defences showed an agent in place of the environment's observations, as far as it takes to show it again.

    With it `verify` puts the defences that a run names around the recorded actions, and compares.

    Attributes:
        digests: SHA-256, in hex, of the observation that the agent answered, turn by turn.
        flagged: Likewise of each text that an injection detector flagged: its model is not asked again.
        asides: What the agent answered in conversations apart: which tools it needs.
    """

    digests: tuple[str, ...] = ()
    flagged: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()

    def __add__(self, later: Shown) -> Shown:
        """Joins what was shown before with what was shown later."""
        flagged = tuple(dict.fromkeys((*self.flagged, *later.flagged)))
        return Shown((*self.digests, *later.digests), flagged, (*self.asides, *later.asides))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An episode as one sequence of token ids: the prompt, then turns of the policy and what came between them.

    Attributes:
        prompt_ids: Up to the first turn, (p,).
        completion_ids: From there on, (c,).
        mask: 1 where the policy wrote the token, 0 elsewhere, (c,).
        logprobs: Natural-log probability of each token that the policy wrote, 0.0 elsewhere, (c,).
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logprobs: list[float]

    @classmethod
    def join(cls, samples: Sequence[Sample]) -> Trajectory | None:
        """Joins the turns of an episode by their ids; nothing is ever tokenised again.

        Returns:
            None where there is no turn, or a turn's prompt does not begin with what came before it: the chat template
            rewrites the past, so that what was sampled is not what would be trained on.
        """
        if not samples:
            return None
        so_far = samples[0].prompt_ids
        joined = cls(list(so_far), [], [], [])
        for sample in samples:
            if sample.prompt_ids[: len(so_far)] != so_far:
                return None
            between = sample.prompt_ids[len(so_far) :]
            joined.completion_ids.extend((*between, *sample.token_ids))
            joined.mask.extend([0] * len(between) + [1] * len(sample.token_ids))
            joined.logprobs.extend([0.0] * len(between) + list(sample.logprobs))
            so_far = sample.prompt_ids + sample.token_ids
        return joined

    def to_json(self) -> dict[str, Json]:
        """Log-probabilities have four decimals: the last bits depend on who shared a batch, and differ between runs."""
        return {**dataclasses.asdict(self), "logprobs": [round(logprob, 4) for logprob in self.logprobs]}


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode.

    Attributes:
        key: Its identity in a run or a stage, such as `ATTACK/TASK_ID#REPEAT`.
        repeat: Which of the repeats of its task, from 0.
        task_id: The task.
        mode: The task's mode.
        suite: The task's suite.
        cluster: The task's cluster.
        attack: Name of the attack, or None.
        metadata: The task's metadata.
        seed: The episode's seed.
        status: "ok", or why it is not scored.
        error: What went wrong, None if nothing did.
        ended: Why the episode is over ("answer", "max_turns", ...), None where it never began or was not finished.
        truncated: Whether it was cut off.
        verdict: Each axis with its value and the reason; no axis is active unless `status` is "ok".
        injections: Vector -> injected text.
        injection_reached: Whether an injected text has stood in a tool message.
        messages: The normalised conversation.
        actions: The raw actions, made JSON-able, one for each assistant message.
        calls: Every requested call, in order.
        usage: Sums over the replies by name (`USAGE`), each known for every reply; `LEFT_OUT` counts the others.
        attempts: Requests that it took; None where that is unknown.
        seconds: Wall-clock times: "total" and "agent", each None where it is unknown.
        shown: What defences showed the agent; None where none stood around it.
        trajectory: The sampled token ids, from a local model. Stage files of training have them, run folders do not.
    """

    key: str
    repeat: int
    task_id: str
    mode: str
    suite: str
    cluster: str
    attack: str | None
    metadata: Mapping[str, Json]
    seed: int
    status: Status
    error: str | None
    ended: str | None
    truncated: bool
    verdict: Verdict
    injections: Mapping[str, str]
    injection_reached: bool
    messages: list[Message]
    actions: list[Json]
    calls: tuple[Call, ...]
    usage: Mapping[str, float]
    attempts: int | None
    seconds: Mapping[str, float | None]
    shown: Shown | None = None
    trajectory: Trajectory | None = field(default=None, repr=False)

    @property
    def content_filtered(self) -> bool:
        """Whether the provider's content filter stopped a turn; the agent records that in its action."""
        reasons = (action.get("finish_reason") for action in self.actions if isinstance(action, dict))
        return "content_filter" in reasons

    def to_json(self, *, tokens: bool = False) -> dict[str, Json]:
        """Returns the episode as it stands in `episodes.jsonl`; all recorded times are under "seconds".

        Args:
            tokens: Whether `trajectory` is a part of it, as in the stage files of training.
        """
        data: dict[str, Json] = {"schema": SCHEMA}
        for name in _FIELDS:
            data[name] = getattr(self, name)
        data["metadata"] = dict(self.metadata)
        data["verdict"] = self.verdict.to_json()
        data["injections"] = dict(self.injections)
        data["calls"] = [dataclasses.asdict(call) for call in self.calls]
        data["usage"] = dict(self.usage)
        data["seconds"] = dict(self.seconds)
        if self.shown is not None:
            data["shown"] = {name: list(texts) for name, texts in dataclasses.asdict(self.shown).items()}
        if tokens:
            data["trajectory"] = None if self.trajectory is None else self.trajectory.to_json()
        return data

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str = "episode") -> Episode:
        """Reads what `to_json` gave.

        Args:
            record: A line of `episodes.jsonl`, `failures.jsonl` or a stage file.
            where: The file and line; begins the error.

        Raises:
            RunCorruptError: The record is anything else; the message names the field.
            RunError: The record was written by a newer fate-gym.
        """
        fields = Fields(record, where)
        fields.check_schema(SCHEMA)
        fields.only(_NAMES)
        seconds = fields.object("seconds")
        seconds.only(_TIMES)
        return cls(
            key=fields.text("key"),
            repeat=_integer(fields, "repeat"),
            task_id=fields.text("task_id"),
            mode=fields.text("mode"),
            suite=fields.text("suite"),
            cluster=fields.text("cluster"),
            attack=fields.text_or_none("attack"),
            metadata=fields.object("metadata").values,
            seed=_integer(fields, "seed"),
            status=fields.choice("status", _STATUSES),
            error=fields.text_or_none("error"),
            ended=fields.text_or_none("ended"),
            truncated=fields.flag("truncated"),
            verdict=_read_verdict(fields.object("verdict")),
            injections=fields.text_mapping("injections"),
            injection_reached=fields.flag("injection_reached"),
            messages=read_messages(fields),
            actions=fields.items("actions"),
            calls=_read_calls(fields),
            usage=_counts(fields.object("usage")),
            attempts=None if fields.values.get("attempts", 0) is None else _integer(fields, "attempts"),
            seconds={name: None if seconds.values.get(name, 0) is None else _count(seconds, name) for name in _TIMES},
            shown=_read_shown(fields.object("shown")) if "shown" in fields.values else None,
            trajectory=_read_trajectory(fields),
        )


_NAMES: Final = frozenset({"schema", *(entry.name for entry in dataclasses.fields(Episode))})
_OPTIONAL: Final = ("shown", "trajectory")
_FIELDS: Final = tuple(entry.name for entry in dataclasses.fields(Episode) if entry.name not in _OPTIONAL)


def _integer(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    return value if 0 <= value <= MAX_COUNT else _refuse_count(fields, name)


def _count(fields: Fields, name: str) -> float:
    value = fields.number(name)
    return value if 0 <= value <= MAX_COUNT else _refuse_count(fields, name)


def _refuse_count(fields: Fields, name: str) -> NoReturn:
    raise fields.problem(name, f"must lie between 0 and {MAX_COUNT}")


def _counts(fields: Fields) -> dict[str, float]:
    fields.only(_USAGE)
    return {name: _count(fields, name) for name in fields.values}


def _read_measures(fields: Fields) -> dict[str, float]:
    measures = {name: fields.number(name) for name in fields.values}
    for name, value in measures.items():
        if abs(value) > MAX_COUNT or (name in _SHARES and not 0 <= value <= 1):
            raise fields.problem(name, "must lie in [0, 1]" if name in _SHARES else f"must lie within {MAX_COUNT}")
    return measures


def _read_verdict(fields: Fields) -> Verdict:
    fields.only(_AXES)
    return Verdict(*[_plain_axis(fields.values.get(name)) or _read_axis(fields.object(name)) for name in AXES])


_AXES: Final = frozenset(AXES)


def _read_axis(fields: Fields) -> AxisVerdict:
    fields.only(_AXIS_FIELDS)
    value = fields.number("value")
    if not 0 <= value <= 1:
        raise fields.problem("value", "must lie in [0, 1]")
    return AxisVerdict(
        value=value,
        active=fields.flag("active"),
        rule=fields.text("rule"),
        evidence=tuple(fields.texts("evidence")) if "evidence" in fields.values else (),
        error=fields.text("error") if "error" in fields.values else None,
        measures=_read_measures(fields.object("measures")) if "measures" in fields.values else {},
    )


_AXIS_FIELDS: Final = frozenset(entry.name for entry in dataclasses.fields(AxisVerdict))


def _plain_axis(axis: Any) -> AxisVerdict | None:
    """Reads an axis as a whole, as calls and messages are; None where something more, or wrong, is in it."""
    if type(axis) is not dict:
        return None
    value, active, rule, evidence = axis.get("value"), axis.get("active"), axis.get("rule"), axis.get("evidence")
    if not (type(value) is float and 0 <= value <= 1 and type(active) is bool and type(rule) is str):
        return None
    if len(axis) == 3:
        return _alike(value, active, rule)
    if len(axis) == 4 and type(evidence) is list and all(type(line) is str for line in evidence):
        return AxisVerdict(value, active, rule, tuple(evidence))
    return None


@lru_cache(maxsize=1000)
def _alike(value: float, active: bool, rule: str) -> AxisVerdict:
    """Makes an axis without evidence; most of them are alike."""
    return AxisVerdict(value, active, rule)


def _read_calls(fields: Fields) -> tuple[Call, ...]:
    # Looked at as a whole first, as messages are.
    calls = fields.items("calls")
    if all(map(_is_call, calls)):
        return tuple([Call(**call) for call in calls])  # type: ignore[arg-type]
    return tuple(map(_read_call, fields.objects("calls")))


def _is_call(call: Any) -> bool:
    return (
        type(call) is dict
        and call.keys() == _CALL_FIELDS
        and type(call["turn"]) is int
        and 0 <= call["turn"] <= MAX_COUNT
        and type(call["id"]) is type(call["name"]) is str
        and call["outcome"] in _OUTCOMES
    )


def _read_call(fields: Fields) -> Call:
    fields.only(_CALL_FIELDS)
    outcome = fields.choice("outcome", _OUTCOMES)
    return Call(_integer(fields, "turn"), fields.text("id"), fields.text("name"), outcome)


_CALL_FIELDS: Final = frozenset(entry.name for entry in dataclasses.fields(Call))


def _read_shown(fields: Fields) -> Shown:
    fields.only(_SHOWN_FIELDS)
    return Shown(**{name: tuple(fields.texts(name)) for name in _SHOWN_FIELDS})


_SHOWN_FIELDS: Final = frozenset(entry.name for entry in dataclasses.fields(Shown))


def _read_trajectory(fields: Fields) -> Trajectory | None:
    if fields.values.get("trajectory") is None:
        return None
    tokens = fields.object("trajectory")
    ids, mask, logprobs = tokens.integers("completion_ids"), tokens.integers("mask"), tokens.numbers("logprobs")
    if not len(ids) == len(mask) == len(logprobs):
        raise fields.problem("trajectory", "must have a mask and a log-probability for each token")
    return Trajectory(tokens.integers("prompt_ids"), ids, mask, logprobs)
