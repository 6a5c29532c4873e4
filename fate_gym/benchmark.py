"""What a benchmark supplies: tasks, a world for each episode, and a verifier. `ToolEnv` owns the loop.

A benchmark is one class in one file, registered with one call; nothing else changes:

    class Parcels(Benchmark):
        ...

    register_benchmark("shop/Parcels-v0", "my_package.parcels:Parcels")
    env = gym.make("shop/Parcels-v0")
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import gymnasium as gym

from fate_gym.arguments import check_arguments
from fate_gym.chat import Json, Message, ToolSchema
from fate_gym.plugins import load_plugin
from fate_gym.rewards import Axis, AxisVerdict
from fate_gym.task import DataPolicy, GroundTruth, Task
from fate_gym.transcript import Transcript

ENTRY_POINT = "fate_gym.env:ToolEnv"
"""Entry point of every environment of this package; tells ours from others in Gymnasium's registry."""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """The result of running a call.

    Attributes:
        kind: "ok"; "unknown_tool"; "bad_arguments" (the tool's own validation refused them); "tool_error" (the
            tool ran and raised).
        text: The answer that the agent reads, as the content of a tool message.
        arguments: The arguments that the tool received, which may differ from those that were requested.
    """

    kind: Literal["ok", "unknown_tool", "bad_arguments", "tool_error"]
    text: str
    arguments: dict[str, Json]


@dataclass(frozen=True, slots=True)
class JudgeOption:
    """How far the word of a judge goes that an option of a benchmark names.

    Attributes:
        axes: The axes that the judge may score.
        rule: How the rule of an axis begins where the judge scored it; the judge's name follows.
        replaces: How the rule of the same axis begins where no judge is named; a judge scores no other axes.
    """

    axes: tuple[Axis, ...]
    rule: str
    replaces: str


class World(ABC):
    """The tools of one episode and the state that they change.

    Attributes:
        opening: The messages that an episode starts with.
        tools: The schemas of the tools. Nobody may change them.
        injections: Injection vector -> injected text; {} without an attack.
        payloads: The injected texts as they appear in the output of a tool.
    """

    opening: list[Message]
    tools: list[ToolSchema]
    injections: Mapping[str, str]
    payloads: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether a call has ended the episode; most episodes end with a message without calls."""
        return False

    @abstractmethod
    def call(self, name: str, arguments: dict[str, Json]) -> ToolOutcome:
        """Runs one tool. An error of the tool or of its arguments is an outcome, never an exception.

        An exception means that the benchmark itself is at fault: the episode then ends unscored, as an `env_error`.
        """

    @abstractmethod
    def dump(self) -> bytes:
        """Returns the whole state, including the state of any random number generator."""

    @abstractmethod
    def load(self, state: bytes) -> None:
        """Restores a state that `dump` returned in a world of the same task.

        Raises:
            Exception: The bytes are not such a state. The world is discarded then.
        """


class Benchmark(ABC):
    """The tasks of one benchmark, the world of each episode, and its verdict.

    Options are keyword arguments of the constructor. One instance serves many episodes at once, from several threads,
    so everything that an episode changes must be kept in its world.
    """

    judge_options: ClassVar[Mapping[str, JudgeOption]] = MappingProxyType({})
    """The options that name a judge, and what each judge may score."""

    only_computes: ClassVar[bool] = False
    """Whether its worlds, tools and graders compute for some milliseconds, once its data are loaded, and wait for
    nothing but a judge that an option names. To hand such a step to a thread takes longer than the step."""

    data_policy: DataPolicy
    tasks: tuple[str, ...]
    model_name: str | None = None
    """The name by which attacks address the evaluated model; None where they do not."""

    options: Mapping[str, Any]
    """The arguments of the constructor, defaults included. A snapshot is restored only under equal options."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Records the options, so that no subclass has to."""
        made = super().__new__(cls)
        made.options = MappingProxyType(_bind(cls, args, options))
        return made

    @property
    def may_wait(self) -> bool:
        """Whether a step may wait for something outside of this process, so that it must hold up no other episode."""
        return not self.only_computes or any(self.options.get(name) is not None for name in self.judge_options)

    @abstractmethod
    def task(self, task_id: str) -> Task:
        """Returns the description of a task, without its ground truth."""

    def ground_truth(self, task_id: str) -> GroundTruth:
        """Returns the solution of a task, for privileged agents.

        Raises:
            NotImplementedError: The benchmark has no ground truth.
        """
        raise NotImplementedError(f"{type(self).__name__} has no ground truth: privileged agents cannot play it")

    @abstractmethod
    def open(self, task_id: str, seed: int) -> World:
        """Creates the world of one episode. Equal arguments must give equal worlds."""

    @abstractmethod
    def verify(self, task: Task, world: World, transcript: Transcript) -> dict[str, AxisVerdict]:
        """Scores a finished episode on security, utility and over_refusal_control.

        Where a grader raises, its axis is an `AxisVerdict.failed`, and the other axes stand. `ToolEnv` scores validity,
        unless the benchmark returns a "validity" of its own, as one does whose answers must follow a grammar.

        Raises:
            JudgeError: A judge could not be asked; the episode stays unscored.
        """

    @classmethod
    def choices(cls) -> Mapping[str, Sequence[str]]:
        """Returns the values that options accept where their types do not say so: names that an upstream decides."""
        return {}

    def injection_goal(self, task_id: str) -> str | None:
        """Returns what an attacker wants of the agent in this task, in the benchmark's words; None without one."""
        return None

    def provenance(self) -> dict[str, Json]:
        """Returns the versions and checksums that the scores depend on, for the manifest of a run."""
        return {}


def load_benchmark(benchmark: str | Benchmark, options: dict[str, Any], *, beside: Sequence[str] = ()) -> Benchmark:
    """Returns the benchmark itself, or creates the one that "module:Class" names.

    Args:
        benchmark: The benchmark, or its name.
        options: Arguments of its constructor.
        beside: Arguments that the environment takes beside those, for an error that names what there is.

    Raises:
        UsageError: An option is unknown or missing.
        TypeError: Options are given beside a benchmark that exists already.
    """
    if isinstance(benchmark, Benchmark):
        if options:
            raise TypeError(f"options {sorted(options)} go to the benchmark's own constructor, which has already run")
        return benchmark
    made: type[Benchmark] = load_plugin(benchmark)
    check_arguments(made, options, of=made.__name__, beside=beside)
    return made(**options)


def benchmark_class(env_id: str) -> type[Benchmark]:
    """Returns the class of a registered environment's benchmark."""
    named: type[Benchmark] = load_plugin(str(gym.spec(env_id).kwargs["benchmark"]))
    return named


def _bind(cls: type[Benchmark], args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the constructor's arguments by name, defaults included."""
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **options)
    except TypeError:
        return options  # wrong arguments: the constructor says so in its own words
    bound.apply_defaults()
    _self, *rest = bound.arguments.items()
    return dict(rest)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What readers of an environment's runs must know of its texts and options.

    Attributes:
        confidential: Whether the texts of its tasks must not be published.
        path_options: Options that name a path on the machine of a run. Scores do not depend on where files lie.
        model_option: The option that takes the name by which attacks address the evaluated model.
        own_name: "module:function" that tells, of a name and an agent's text, whether the name is the agent's own. Two
            runs whose models are addressed by their own names follow the same protocol.
        summary: What its tasks are, in one sentence; "" where nobody said so.
    """

    confidential: bool = False
    path_options: tuple[str, ...] = ()
    model_option: str | None = None
    own_name: str | None = None
    summary: str = ""

    def strange_name(self, settings: Mapping[str, Any], agent: str, recorded: str | None = None) -> str | None:
        """Returns the name by which attacks address an agent, if it is not the agent's own.

        Args:
            settings: The environment's arguments.
            agent: The agent's text.
            recorded: The name as the manifest has it; None for older manifests, which have it only where it was given.
        """
        name = recorded if recorded is not None else settings.get(self.model_option or "")
        if name is None or self.own_name is None:
            return None
        module, _, function = self.own_name.partition(":")
        own: bool = getattr(import_module(module), function)(str(name), agent)
        return None if own else str(name)


_disclosures: dict[str, Disclosure] = {}


def disclosure(env_id: str) -> Disclosure | None:
    """Returns what an environment declared when it was registered; None if it is not registered here.

    Leaderboards ask for it. They read runs of environments whose benchmark takes seconds to import, so that this does
    not stand in the benchmark's class.
    """
    return _disclosures.get(env_id.rpartition(":")[2])


def register_benchmark(
    env_id: str,
    entry_point: str,
    *,
    max_turns: int = 15,
    max_messages: int | None = None,
    confidential: bool = False,
    path_options: Sequence[str] = (),
    model_option: str | None = None,
    own_name: str | None = None,
    summary: str = "",
) -> None:
    """Registers a benchmark with Gymnasium, so that `gym.make` finds it.

    Args:
        env_id: Gymnasium id with a version, such as "fate/AgentDojo-v0". Raise the version with every change that
            alters scores.
        entry_point: "module:Class" of a `Benchmark`; imported when an environment is made.
        max_turns: Default number of tool rounds before an episode is truncated.
        max_messages: Default number of messages before an episode is truncated; None for no such limit.
        confidential: Whether the texts of its tasks must not be published.
        path_options: Options of the benchmark that name a path.
        model_option: The option of the benchmark that takes the name by which attacks address the evaluated model.
        own_name: "module:function" that tells, of a name and an agent's text, whether the name is the agent's own.
        summary: What its tasks are, in one sentence, for lists.
    """
    _disclosures[env_id] = Disclosure(confidential, tuple(path_options), model_option, own_name, summary)
    gym.register(
        id=env_id,
        entry_point=ENTRY_POINT,
        kwargs={"benchmark": entry_point, "max_turns": max_turns, "max_messages": max_messages},
        # Gymnasium's checker warns of any vector reward; tests run it on the scalarised form.
        disable_env_checker=True,
        # `ToolEnv` itself says so when it is stepped before a reset.
        order_enforce=False,
    )
