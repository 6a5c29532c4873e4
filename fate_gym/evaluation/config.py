"""What an evaluation is: its settings, from flags or a YAML file, checked once."""

from __future__ import annotations

import dataclasses
import importlib.resources
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fate_gym.attack import Attack, attack_label, is_attack
from fate_gym.benchmark import disclosure
from fate_gym.chat import Json
from fate_gym.evaluation.plan import DEFAULT_ENV, Plan, TaskSet
from fate_gym.evaluation.workers import Backend
from fate_gym.serving import public_url
from fate_gym.storage import digest, is_finite, read_yaml

NOT_IN_DIGEST = ("limit", "concurrency", "workers", "backend", "max_cost", "out")
"""Settings that a resumed run may change."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """The settings of one run: one agent over one environment.

    Attributes:
        agent: The agent's text (`fate_gym.agents.SPECS`).
        agent_args: Options of the agent.
        defences: Defences around the agent, the innermost first.
        env: Gymnasium id.
        attack: Attacks, each over all its tasks; None leaves the environment its default.
        env_args: Further arguments of the environment.
        tasks: Only tasks whose ids match one of these patterns (`fnmatch`), such as `banking/user_task_3/*`.
        seed: Every episode's seed is derived from it.
        repeats: Episodes for each task and attack.
        limit: At most so many tasks for each attack, drawn by the seed; a larger limit adds to a smaller one's.
        concurrency: Episodes under way at once, over all workers.
        workers: Processes that play episodes.
        backend: Where they are: "local" on this machine, "ray" on a Ray cluster.
        max_cost: No further episode begins once so many USD are spent, those of earlier starts included.
        out: The run folder.
    """

    agent: str
    agent_args: dict[str, Any] = field(default_factory=dict)
    defences: tuple[str, ...] = ()
    env: str = DEFAULT_ENV
    attack: tuple[Attack, ...] | None = None
    env_args: dict[str, Json] = field(default_factory=dict)
    tasks: tuple[str, ...] | None = None
    seed: int = 0
    repeats: int = 1
    limit: int | None = None
    concurrency: int = 8
    workers: int = 1
    backend: Backend = "local"
    max_cost: float | None = None
    out: Path = Path("runs/eval")

    def __post_init__(self) -> None:
        check_types({entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)})

    def folder_name(self) -> str:
        """Returns a name for the run folder that follows from the settings, so that equal settings resume a run."""
        kept = {name: value for name, value in self.to_json().items() if name not in NOT_IN_DIGEST}
        agent = re.sub(r"[^A-Za-z0-9]+", "-", self.agent).strip("-")
        return f"{self.env.rsplit('/', 1)[-1]}-{agent}-{digest(kept)[:8]}"

    def plan(self) -> Plan:
        """Makes the environments and lists the episodes; raises as `Plan` does."""
        task_set = TaskSet(self.env, self.attack, self.env_args, self.tasks, repeats=self.repeats, limit=self.limit)
        return Plan([task_set], self.seed)

    def to_json(self) -> dict[str, Json]:
        """As it stands in the manifest."""
        data = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        data["out"] = str(self.out)
        data["defences"] = list(self.defences)
        data["agent_args"] = {
            name: public_url(value) if isinstance(value, str) and "://" in value else value
            for name, value in self.agent_args.items()
        }
        data["env_args"] = _without_logins({name: _named(value) for name, value in self.env_args.items()})
        data["attack"] = None if self.attack is None else list(self.attack)
        data["tasks"] = None if self.tasks is None else list(self.tasks)
        return data


def _named(value: Any) -> Json:
    """Returns the name of a function, such as a judge of one's own, which alone can stand in a manifest."""
    return f"{value.__module__}:{value.__qualname__}" if inspect.isroutine(value) else value


def check_types(settings: Mapping[str, object]) -> None:
    """Checks the settings of an evaluation, wherever they come from: flags, a YAML file, a stranger's manifest.

    Args:
        settings: By the names of `EvalConfig`; those that are missing are not checked, nor are others.

    Raises:
        ValueError: One has another type than `EvalConfig` says, or a value that makes no sense.
    """
    for name, (holds, what) in _RULES.items():
        if name in settings and not holds(settings[name]):
            raise ValueError(f"{name} must be {what}, got {repr(settings[name])[:_LONGEST]}")


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**63


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _are_options(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _are_attacks(value: object) -> bool:
    if not isinstance(value, list | tuple) or not all(map(is_attack, value)):
        return False
    labels = [attack_label(attack) for attack in value]
    return bool(labels) and len(set(labels)) == len(labels)


_LONGEST = 200
"""Characters of a value in an error."""

MOST_REPEATS = 1000
"""A larger number would fill the memory of `verify` with the plan alone."""

_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "agent": (lambda value: isinstance(value, str) and value != "", "the name of an agent"),
    "agent_args": (_are_options, "a mapping of options"),
    "defences": (_are_texts, "a list of names"),
    "env": (lambda value: isinstance(value, str) and value != "", "the id of an environment"),
    "attack": (
        lambda value: value is None or _are_attacks(value),
        "at least one attack, each once: names, or payloads by vector",
    ),
    "env_args": (_are_options, "a mapping of options"),
    "tasks": (lambda value: value is None or _are_texts(value), "a list of patterns"),
    "seed": (lambda value: type(value) is int and abs(value) < 2**63, "a whole number of at most 64 bits"),
    "repeats": (
        lambda value: _is_count(value) and value <= MOST_REPEATS,  # type: ignore[operator]
        f"a positive whole number up to {MOST_REPEATS}",
    ),
    "limit": (lambda value: value is None or _is_count(value), "a positive whole number"),
    "concurrency": (_is_count, "a positive whole number"),
    "workers": (_is_count, "a positive whole number"),
    "backend": (lambda value: value in get_args(Backend), " or ".join(get_args(Backend))),
    "max_cost": (lambda value: value is None or (is_finite(value) and value > 0), "above 0"),
    "out": (lambda value: isinstance(value, str | Path) and str(value) != "", "the path of a folder"),
}


def _without_logins(value: Json) -> Json:
    """Takes secrets out of the addresses of judges, which environments take as mappings with a `base_url`."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: public_url(item) if name == "base_url" and isinstance(item, str) else _without_logins(item)
        for name, item in value.items()
    }


def model_name(agent: str, env: str) -> dict[str, str]:
    """Returns the argument of an environment by which its attacks address the evaluated model.

    Args:
        agent: The agent's text.
        env: The environment's id.

    Returns:
        Nothing where the environment declares no such argument, or AgentDojo has no name for the model.
    """
    kind, _, model = agent.partition(":")
    declared = disclosure(env)
    if kind not in ("openai", "hf") or declared is None or declared.model_option is None:
        return {}
    from fate_gym.benchmarks.agentdojo.model_names import prose_name

    name = prose_name(model)
    return {} if name is None else {declared.model_option: name}


def read_settings(name: str) -> dict[str, Any]:
    """Reads settings from a YAML file, or from a configuration that ships with the package.

    Args:
        name: A path, or the name of a shipped configuration.

    Raises:
        ValueError: There is no such file, or it is not a mapping with unique keys.
        OSError: The file cannot be read.
    """
    path = Path(name)
    source: Any = path if path.is_file() else importlib.resources.files("fate_gym.configs") / f"{name}.yaml"
    if not source.is_file():
        raise ValueError(f"no configuration {name!r}: neither a file nor one of {', '.join(shipped_configs())}")
    return read_yaml(source, name)


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with the package."""
    files = importlib.resources.files("fate_gym.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
