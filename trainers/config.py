"""The settings of a training, read from a YAML file and `key=value` overrides."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

from fate_gym.chat import Json
from fate_gym.evaluation.config import read_settings
from fate_gym.evaluation.plan import TaskSet
from fate_gym.trainers._settings_reader import read_dataclass
from fate_gym.trainers.algorithms.settings import DPOSettings, PFPOSettings, SupervisedSettings
from fate_gym.trainers.cloning.settings import CloningSettings
from fate_gym.trainers.methods import METHODS, Method, MethodName
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.server import ServerSettings
from fate_gym.trainers.stages.prompts import PromptSettings

MAY_CHANGE: Final = ("rounds", "patience", "concurrency", "sampler")
"""Settings that may change on resume: they change no result that exists already."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """Stage 1: which episodes count as failures.

    Attributes:
        thresholds: An episode is a failure if an active axis is below its threshold, in the order of
            `fate_gym.rewards.AXES`.
        leave_out_noop: Whether to exclude tasks that an agent passes by doing nothing. On them, a policy that learns to
            do nothing would look safe and useful.
    """

    thresholds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.9)
    leave_out_noop: bool = True


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the base policy must reach on the training tasks: an incompetent policy looks safe.

    Attributes:
        utility: Least share of benign tasks that it does.
        attack_success: Least share of attacks that succeed; 0 if no attack is trained on.
    """

    utility: float = 0.8
    attack_success: float = 0.25


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """Stage 2: how repairs are proposed.

    Attributes:
        candidates: Candidates per failure, K.
        prompt: What the policy reads: "repair_prompt" (p_f in the paper), or "task_prompt" (x), the plain task, which
            makes the stage rejection sampling.
        show: How the repair prompt shows the failed attempt.
    """

    candidates: int = 8
    prompt: Literal["repair_prompt", "task_prompt"] = "repair_prompt"
    show: PromptSettings = field(default_factory=PromptSettings)

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")


@dataclass(frozen=True, slots=True)
class SelectSettings:
    """Stage 3: which candidate becomes the repair.

    Attributes:
        rule: "pareto", as in the paper; "weighted-sum" of the axes; or "random" among the accepted candidates.
        validity: Least validity of an accepted candidate.
        over_refusal: Whether the over-refusal axis counts.
        rescore: Whether candidates are judged by their own execution. Without it, all are accepted unverified.
    """

    rule: Literal["pareto", "weighted-sum", "random"] = "pareto"
    validity: float = 0.9
    over_refusal: bool = True
    rescore: bool = True


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    """Stage 4: which examples the warm-up learns from.

    Attributes:
        repair_prompt: Weight of a repair after its repair prompt (p_f in the paper); 0 leaves these examples out.
        task_prompt: Weight of the same repair after the plain task (x), which is the prompt in tests; 0 leaves these
            examples out.
        anchor: Benign successes per repair, against over-refusal; 0 for none.
        successes: Whether all successes of the round are learned, those under attack too, in place of the anchor.
    """

    repair_prompt: float = 0.3
    task_prompt: float = 1.0
    anchor: float = 1.0
    successes: bool = False

    def __post_init__(self) -> None:
        if min(self.repair_prompt, self.task_prompt, self.anchor) < 0:
            raise ValueError("repair_prompt, task_prompt and anchor must not be negative")


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Which tasks decide among rounds, and which are reported.

    Attributes:
        dev: Tasks that are scored after each round.
        test: Test sets by name, scored once before training and once after.
        main: The name in `test` whose scores head the summary.
        temperature: Temperature of sampling in all these scores; 0 for greedy decoding.
    """

    dev: TaskSet = field(default_factory=TaskSet)
    test: dict[str, TaskSet] = field(default_factory=dict)
    main: str = "pair"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.test and self.main not in self.test:
            raise ValueError(f"main is {self.main!r}, which is not among the test sets {', '.join(self.test)}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The settings of one training.

    Attributes:
        policy: The model to start from: a folder, or an id on the hub.
        base: Settings of cloning, which then makes the model to start from; in place of `policy`.
        method: A name in `methods.METHODS`: "fate", or a baseline on the same tasks.
        rounds: Most rounds of self-evolution, T.
        patience: Training stops after so many rounds without a better dev hypervolume.
        budget: Policy tokens that the training may sample, in rollouts, candidates and refills together; None for no
            limit. Each round may spend an equal part of what is left. One stage takes all that the others leave of it:
            policy optimisation (`pfpo.steps` is then ignored), else repair, else the collection of successes.
        seed: Every other seed is derived from it.
        train: The tasks to fail on and to learn.
        agent: Options of the policy as an agent (`LocalAgent`), such as `max_new_tokens` and `chat_template`; it learns
            with the same chat template.
        sampler: A server that samples the policy; null to sample in this process.
        concurrency: Episodes that run at the same time.
        attention: transformers' `attn_implementation`.
        lora: Adapters; null to learn all weights.
        gate: What the base policy must reach; null to accept any.
        collect: Stage 1.
        repair: Stage 2.
        select: Stage 3.
        examples: Stage 4: the data of the warm-up.
        warmup: Stage 4: hyperparameters of the warm-up; null leaves it out.
        pfpo: Stage 5: hyperparameters of policy optimisation; null leaves it out.
        dpo: Hyperparameters of the method "dpo".
        evaluate: Dev and test sets.
    """

    policy: str | None = None
    base: CloningSettings | None = None
    method: MethodName = "fate"
    rounds: int = 2
    patience: int = 1
    budget: int | None = None
    seed: int = 0
    train: tuple[TaskSet, ...] = ()
    agent: dict[str, Json] = field(default_factory=dict)
    sampler: ServerSettings | None = None
    concurrency: int = 128
    attention: str | None = None
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    gate: GateSettings | None = field(default_factory=GateSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    examples: ExampleSettings = field(default_factory=ExampleSettings)
    warmup: SupervisedSettings | None = field(default_factory=SupervisedSettings)
    pfpo: PFPOSettings | None = field(default_factory=PFPOSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        if (self.policy is None) == (self.base is None):
            raise ValueError("give either `policy`, a folder or an id on the hub, or `base`, settings of cloning")
        if not self.train:
            raise ValueError("give `train`, the task sets to learn on")
        for name in ("rounds", "patience", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1 token, or null for no limit, got {self.budget}")
        if self.sampler and self.sampler.reload is None and self.lora is None:
            raise ValueError("without `lora` there are no adapters to load: give `sampler.reload`, a command")
        if not (self.active_method.warm_up or self.active_method.optimises):
            missing = [
                f"`{name}`"
                for name, needed in (("warmup", METHODS[self.method].warm_up), ("pfpo", METHODS[self.method].optimises))
                if needed
            ]
            raise ValueError(f"method {self.method} would learn nothing: give {' or '.join(missing)}")

    @property
    def active_method(self) -> Method:
        """The method, without the updates that these settings leave out."""
        method = METHODS[self.method]
        # DPO takes the place of the warm-up, and has settings of its own.
        leaves_warm_up_out = self.warmup is None and method.warm_up != "preferences"
        return dataclasses.replace(
            method,
            warm_up=None if leaves_warm_up_out else method.warm_up,
            optimises=method.optimises and self.pfpo is not None,
        )

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of the settings that the method never reads: no result depends on them."""
        method = self.active_method
        reads = {
            "repair": method.repairs,
            "select": method.repairs,
            "pfpo": method.optimises,
            "dpo": method.warm_up == "preferences",
        }
        return tuple(name for name, is_read in reads.items() if not is_read)

    @property
    def excluded_tasks(self) -> tuple[str, ...]:
        """Patterns of tasks that a cloned base policy was not made for."""
        return self.base.exclude if self.base else ()

    def to_json(self) -> dict[str, Json]:
        """Returns the settings as `config.json` has them."""
        return typing.cast(dict[str, Json], _plain(dataclasses.asdict(self)))


def read_config(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads settings from a YAML file or a shipped configuration, and overrides some.

    Args:
        name: A path, or the name of a shipped configuration.
        overrides: Strings "KEY=VALUE". Nested keys have dots ("repair.candidates=4"), values are YAML.

    Raises:
        ValueError: The file does not exist, a key is unknown, or a value makes no sense.
    """
    settings = read_settings(name)
    if "study" in settings:
        raise ValueError(f"{name} is a study of several trainings: fate-gym train study --config {name}")
    return config_from(overridden(settings, overrides))


def overridden(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns settings, as YAML has them, with today's names and some of them overridden ("KEY=VALUE").

    Raises:
        ValueError: A text is no override, or its key is none.
    """
    changed = with_current_names(copy.deepcopy(dict(settings)))
    for text in overrides:
        _override(changed, text)
    return changed


def config_from(settings: Mapping[str, Any]) -> TrainConfig:
    """Reads settings from a mapping, as YAML or `config.json` has it; missing ones get their defaults.

    Raises:
        ValueError: A key is unknown, or a value makes no sense.
    """
    config: TrainConfig = read_dataclass(TrainConfig, with_current_names(settings))
    return config


_RENAMED: Final = {"p_f": "repair_prompt", "x": "task_prompt"}
"""Version 1 had the paper's symbols as keys in `examples`, and as values of `repair.prompt`."""

_FROM_NOTHING: Final = "tiny"
"""Version 2 had `base: tiny`, the only policy that cloning could make then, and its settings in `tiny`."""


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of an earlier version, or of today, with today's names."""
    current = dict(settings)
    if current.get("base") in (None, _FROM_NOTHING):
        tiny = current.pop(_FROM_NOTHING, None)
        if current.get("base") == _FROM_NOTHING:
            current["base"] = tiny or {}
    if isinstance(examples := current.get("examples"), Mapping):
        current["examples"] = {_RENAMED.get(key, key): value for key, value in examples.items()}
    if isinstance(repair := current.get("repair"), Mapping):
        current["repair"] = with_current_prompt(repair)
    return current


def with_current_prompt(repair: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of repair with today's name of the prompt."""
    prompt = repair.get("prompt")
    return {**repair, "prompt": _RENAMED.get(prompt, prompt)} if isinstance(prompt, str) else dict(repair)


def _override(settings: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"override {text!r} must be KEY=VALUE, such as repair.candidates=4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {key}: {value!r} is not valid YAML") from error
    *path, last = key.split(".")
    for part in path:
        inner = settings.get(part)
        if not isinstance(inner, dict):
            # A section that is absent or null is created.
            if inner is not None:
                raise ValueError(f"override {key}: {part} is {inner!r} and has no settings of its own")
            inner = settings[part] = {}
        settings = inner
    settings[last] = parsed


def _plain(value: Any) -> Json:
    """Returns a value with the types of JSON: tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return typing.cast(Json, value)
