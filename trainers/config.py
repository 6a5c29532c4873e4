"""What a training is: its settings, from a YAML file and `key=value` overrides, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

from fate_gym.chat import Json
from fate_gym.evaluation.config import read_settings
from fate_gym.evaluation.plan import Attack
from fate_gym.trainers.episodes import TaskSet
from fate_gym.trainers.fitting import FitSettings
from fate_gym.trainers.pfpo import PFPOSettings
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.preferences import DPOSettings
from fate_gym.trainers.prompts import PromptSettings
from fate_gym.trainers.tiny.settings import TinySettings

Method = Literal["fate", "sft", "rft", "dpo", "grpo", "gdpo", "security-only"]

RULE_OF: Final[Mapping[str, str]] = {"grpo": "weighted-sum", "gdpo": "gdpo", "security-only": "security-only"}
"""Advantage rule of the methods that are policy optimisation alone."""

MAY_CHANGE: Final = ("rounds", "patience", "concurrency")
"""Settings with which a folder may be gone on with; they change nothing that is done already."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """Stage 1: what a failure is.

    Attributes:
        thresholds: An episode failed if an active axis is below its own, in the order of `fate_gym.rewards.AXES`.
        leave_out_noop: Whether tasks that doing nothing passes are left out of training: a policy that learns to do
            nothing would pass for a safe and useful one.
    """

    thresholds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.9)
    leave_out_noop: bool = True


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the base policy must reach on the training tasks: an incompetent policy looks safe.

    Attributes:
        utility: Least share of benign tasks done.
        attack_success: Least share of attacks that succeed; 0 where no attack is trained on.
    """

    utility: float = 0.8
    attack_success: float = 0.25


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """Stage 2: how repairs are proposed.

    Attributes:
        candidates: For each failure, K.
        prompt: "p_f", the repair prompt; or "x", the plain task, which makes it rejection sampling.
        show: How p_f shows the failed attempt.
    """

    candidates: int = 8
    prompt: Literal["p_f", "x"] = "p_f"
    show: PromptSettings = field(default_factory=PromptSettings)

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """Stage 3: which candidate becomes the repair.

    Attributes:
        rule: "pareto", the paper's; "weighted-sum" of the axes; or "random" among the accepted.
        validity: Least validity of an accepted candidate.
        over_refusal: Whether that axis is looked at.
        rescore: Whether candidates are judged by their own execution; without it, all are accepted unverified.
    """

    rule: Literal["pareto", "weighted-sum", "random"] = "pareto"
    validity: float = 0.9
    over_refusal: bool = True
    rescore: bool = True


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    """Stage 4: what the warm-up learns from.

    Attributes:
        p_f: Weight of a repair under its repair prompt; 0 leaves it out.
        x: Weight of the same repair under the plain task, which is what tests show; 0 leaves it out.
        anchor: Benign successes for each repair, against over-refusal; 0 for none.
    """

    p_f: float = 0.3
    x: float = 1.0
    anchor: float = 1.0

    def __post_init__(self) -> None:
        if min(self.p_f, self.x, self.anchor) < 0:
            raise ValueError("p_f, x and anchor must not be negative")


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """What decides among rounds, and what is reported.

    Attributes:
        dev: Task set that is scored after each round.
        test: Name -> task set, scored once before training and once after.
        main: The one of `test` whose row heads the summary.
        temperature: Of the policy in both; 0 for greedy decoding.
    """

    dev: TaskSet = field(default_factory=TaskSet)
    test: dict[str, TaskSet] = field(default_factory=dict)
    main: str = "pair"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.test and self.main not in self.test:
            raise ValueError(f"main is {self.main!r}, which is none of the test sets {', '.join(self.test)}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The settings of one training.

    Attributes:
        policy: The model to begin with: a folder, or an id on the hub.
        base: "tiny" to make that model from nothing, by `tiny`; then there is no `policy`.
        tiny: How.
        method: "fate", or a baseline on the same data: "sft" on repairs, "rft" on successes, "dpo" on (repair,
            failure), and policy optimisation from the base policy by "grpo", "gdpo" or "security-only".
        rounds: Most rounds of self-evolution, T.
        patience: Rounds without a better dev hypervolume after which training stops.
        seed: All others follow from it.
        train: The task sets to fail and learn on.
        agent: Options of the policy as an agent (`LocalAgent`), such as `max_new_tokens` and `chat_template_kwargs`.
        concurrency: Episodes under way at once.
        attention: transformers' `attn_implementation`.
        lora: Adapters; null to learn all weights.
        gate: What the base policy must reach; null to go on with any.
        collect: Stage 1.
        repair: Stage 2.
        select: Stage 3.
        examples: Stage 4, what is learned from.
        warmup: Stage 4, how; null leaves it out.
        pfpo: Stage 5; null leaves it out.
        dpo: How the method "dpo" learns.
        evaluate: Dev and test sets.
    """

    policy: str | None = None
    base: Literal["tiny"] | None = None
    tiny: TinySettings = field(default_factory=TinySettings)
    method: Method = "fate"
    rounds: int = 2
    patience: int = 1
    seed: int = 0
    train: tuple[TaskSet, ...] = ()
    agent: dict[str, Json] = field(default_factory=dict)
    concurrency: int = 128
    attention: str | None = None
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    gate: GateSettings | None = field(default_factory=GateSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    examples: ExampleSettings = field(default_factory=ExampleSettings)
    warmup: FitSettings | None = field(default_factory=FitSettings)
    pfpo: PFPOSettings | None = field(default_factory=PFPOSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        if (self.policy is None) == (self.base is None):
            raise ValueError("give either `policy`, a folder or an id on the hub, or `base: tiny`")
        if not self.train:
            raise ValueError("give `train`, the task sets to learn on")
        for name in ("rounds", "patience", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.method == "fate" and self.warmup is None and self.pfpo is None:
            raise ValueError("without `warmup` and `pfpo` nothing would be learned")
        if self.method in ("sft", "rft") and self.warmup is None:
            raise ValueError(f"method {self.method} is the warm-up alone: give `warmup`")
        if self.method in RULE_OF and self.pfpo is None:
            raise ValueError(f"method {self.method} is policy optimisation alone: give `pfpo`")

    def to_json(self) -> dict[str, Json]:
        """As it stands in `config.json`."""
        return typing.cast(dict[str, Json], _plain(dataclasses.asdict(self)))


def read_config(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads settings from a YAML file or a shipped configuration, and overrides some.

    Args:
        name: A path, or the name of a shipped configuration.
        overrides: Texts "KEY=VALUE"; keys have dots ("repair.candidates=4"), values are YAML.

    Raises:
        ValueError: There is no such file, a key is unknown, or a value makes no sense.
    """
    settings = read_settings(name)
    for text in overrides:
        _override(settings, text)
    config: TrainConfig = _read(TrainConfig, settings, "")
    return config


def _override(settings: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"override {text!r} must be KEY=VALUE, such as repair.candidates=4")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {key}: {value!r} is no valid YAML") from error
    *path, last = key.split(".")
    for part in path:
        inner = settings.get(part)
        if not isinstance(inner, dict):
            # What is absent or null becomes a section of its own.
            if inner is not None:
                raise ValueError(f"override {key}: {part} is {inner!r} and has no settings of its own")
            inner = settings[part] = {}
        settings = inner
    settings[last] = read


def _read(kind: Any, value: Any, where: str) -> Any:
    """Reads a YAML value as what a field is declared to be."""
    if kind is Any or kind in (Json, Attack):
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return (
            None if value is None else _read(next(one for one in arguments if one is not types.NoneType), value, where)
        )
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), where, "a mapping", value)
        return {str(key): _read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(kind):
        return _read_settings(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML takes 1e-4 for a text.
        try:
            return float(value)
        except ValueError:
            raise _wrong(where, "a number", value) from None
    _expect(type(value) is kind, where, _NAMES.get(kind, kind.__name__), value)
    return value


_NAMES: Final = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A single value stands for a list of one, where a list may have any length."""
    endless = arguments[-1] is Ellipsis
    values = value if isinstance(value, list | tuple) else [value]
    if not endless:
        _expect(len(values) == len(arguments), where, f"{len(arguments)} values", value)
    kinds = [arguments[0]] * len(values) if endless else arguments
    return tuple(_read(kind, entry, f"{where}[{n}]") for n, (kind, entry) in enumerate(zip(kinds, values, strict=True)))


def _read_settings(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where or "the configuration", "a mapping", value)
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are: {', '.join(hints)}"
            raise ValueError(f"unknown setting {prefix}{key}; {hint}")
    read = {key: _read(hints[key], entry, f"{prefix}{key}") for key, entry in value.items()}
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _expect(holds: bool, where: str, expected: str, value: Any) -> None:
    if not holds:
        raise _wrong(where, expected, value)


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where} must be {expected}, got {value!r}")


def _plain(value: Any) -> Json:
    """As JSON has it: tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return typing.cast(Json, value)
