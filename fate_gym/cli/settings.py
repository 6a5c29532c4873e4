"""Flags and configuration files, merged into settings."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fate_gym.attack import is_attack
from fate_gym.benchmark import benchmark_class
from fate_gym.catalogue import find_environment, make_environment
from fate_gym.env import ToolEnv
from fate_gym.errors import UsageError, did_you_mean
from fate_gym.evaluation.config import EvalConfig, model_name, read_settings
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.storage import dump, is_finite, parse_yaml

ENV_FLAGS: Final = ("suite", "split", "version", "max_turns", "system_prompt", "model_name")
"""Arguments of the environment that have flags of their own."""

AGENT_FLAGS: Final = ("base_url", "adapter", "temperature")
"""Options of agents that have flags of their own."""

_ALL: Final = "all"
"""In place of an attack's name: every attack that the environment has."""

_KINDS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "agent": (lambda value: _is_text(value) or _is_texts(value), "a name or a list of names"),
    "agent_args": (lambda value: _is_mapping(value), "a mapping from names to values that JSON can hold"),
    "defences": (lambda value: _is_text(value) or _is_texts(value), "a name or a list of names"),
    "env": (lambda value: _is_text(value), "a string"),
    "attack": (
        lambda value: _is_attack(value) or (isinstance(value, list) and all(map(_is_attack, value))),
        "a name, a mapping from vectors to payloads, or a list of these",
    ),
    "env_args": (lambda value: _is_mapping(value), "a mapping from names to values that JSON can hold"),
    "tasks": (lambda value: _is_text(value) or _is_texts(value), "a pattern or a list of patterns"),
    "seed": (lambda value: type(value) is int, "a whole number"),
    "repeats": (lambda value: type(value) is int, "a whole number"),
    "limit": (lambda value: value is None or type(value) is int, "a whole number"),
    "concurrency": (lambda value: type(value) is int, "a whole number"),
    "workers": (lambda value: type(value) is int, "a whole number"),
    "backend": (lambda value: _is_text(value), "a name"),
    "max_cost": (lambda value: value is None or is_finite(value), "a finite number"),
    "out": (lambda value: _is_text(value), "the path of a folder"),
}
"""What each setting must be, as a test and in words."""

_KEYS: Final = {*_KINDS, *ENV_FLAGS, *AGENT_FLAGS}


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns what wrong settings raise into one line; elsewhere such an exception is a bug and shows its trace."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def add_env_flags(
    parser: argparse.ArgumentParser,
    *,
    env: str = f"The Gymnasium id of the environment (default: {DEFAULT_ENV}).",
    attacks: str = "The attacks to run, each over all tasks; `none` (the default) runs the tasks without an attack, "
    "`all` stands for every attack but that.",
) -> None:
    """Adds the flags that choose an environment and its tasks.

    Args:
        parser: Receives them.
        env: The help of `--env`.
        attacks: The help of `--attack`.
    """
    group = parser.add_argument_group("environment")
    group.add_argument("--env", metavar="ID", help=env)
    group.add_argument(
        "--suite", nargs="+", metavar="NAME", help="The suites of AgentDojo's tasks to use, or `all` (the default)."
    )
    group.add_argument("--attack", nargs="+", metavar="NAME", help=attacks)
    group.add_argument(
        "--model-name",
        metavar="NAME",
        help="The name by which attacks address the model, such as `GPT-4`. By default it follows from the agent's "
        "model where AgentDojo knows that model, and is `Local model` elsewhere.",
    )
    group.add_argument(
        "--split", metavar="NAME", help="The part of the tasks: `train`, `dev`, `test`, or a label of the split file."
    )
    group.add_argument("--version", metavar="V", help="The version of the benchmark (default: the newest).")
    group.add_argument(
        "--max-turns",
        type=int,
        metavar="N",
        help="The number of tool rounds after which an episode is cut off (default: 15; ATBench: 30).",
    )
    group.add_argument("--system-prompt", metavar="TEXT", help="The system prompt, in place of the benchmark's own.")
    group.add_argument(
        "--env-arg",
        dest="env_args",
        action="append",
        metavar="KEY=VALUE",
        help="Any other argument of the environment. The value is read as YAML. May be given several times.",
    )


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose agents."""
    group = parser.add_argument_group("agent")
    group.add_argument(
        "--agent",
        nargs="+",
        metavar="NAME",
        help="The agents to run, or YAML files that describe one each; `fate-gym agents` lists what there is.",
    )
    group.add_argument(
        "--defence",
        "--defense",
        dest="defences",
        nargs="+",
        metavar="NAME",
        help="Defences around the agent, the innermost first; `fate-gym agents` lists them.",
    )
    group.add_argument(
        "--base-url", metavar="URL", help="The server of an `openai:` agent, such as a vLLM or llama.cpp server."
    )
    group.add_argument("--adapter", metavar="DIR", help="The folder of a LoRA adapter for an `hf:` agent.")
    group.add_argument("--temperature", type=float, metavar="T", help="The sampling temperature; 0 is greedy.")
    group.add_argument(
        "--agent-arg",
        dest="agent_args",
        action="append",
        metavar="KEY=VALUE",
        help="Any other option of the agent. The value is read as YAML. May be given several times.",
    )


def merge(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of a configuration file, if there is one, overridden by flags.

    Raises:
        ValueError: A key is unknown, or a value is malformed.
    """
    settings = _known(read_settings(options.config), options.config) if getattr(options, "config", None) else {}
    flags = {name: value for name, value in vars(options).items() if name in _KEYS and value is not None}
    for group in ("env_args", "agent_args"):
        flags[group] = {**settings.get(group, {}), **_pairs(group, flags.get(group, []))}
    settings = _grouped(_known({**settings, **flags}, "the command line"))
    find_environment(settings.get("env", DEFAULT_ENV))
    return settings


def make_env(options: argparse.Namespace, *, required: bool = False) -> tuple[ToolEnv, str]:
    """Makes the one environment that a command line asks for, and returns it with its id.

    Args:
        options: What the command line holds.
        required: Whether there is no default.

    Raises:
        UsageError: There is no such environment, or it cannot be made so.
    """
    with usage_errors():
        settings = merge(options)
        if required and "env" not in settings:
            raise ValueError("no environment given: --env ID; `fate-gym envs` lists them")
        attacks = [name for entry in settings.get("attack", []) for name in entry.split(",")]
        if len(attacks) > 1:
            raise ValueError(f"{' '.join(attacks)}: this takes one attack at a time")
        env_id = settings.get("env", DEFAULT_ENV)
        return make_environment(env_id, settings["env_args"] | ({"attack": attacks[0]} if attacks else {})), env_id


def _known(settings: dict[str, Any], source: str) -> dict[str, Any]:
    for name, value in settings.items():
        if name not in _KEYS:
            question = did_you_mean(name, _KEYS)
            raise ValueError(f"{source}: there is no setting {name!r}{question}; there are: {', '.join(sorted(_KEYS))}")
        is_kind, kind = _KINDS.get(name, (lambda value: True, ""))
        if not is_kind(value):
            raise ValueError(f"{source}: {name} must be {kind}, not {repr(value)[:80]}")
    return settings


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_mapping(value: object) -> bool:
    if not isinstance(value, dict) or not all(map(_is_text, value)):
        return False
    try:
        # The manifest is JSON, which has neither NaN nor YAML's dates and binaries.
        dump(value)
    except (ValueError, TypeError):
        return False
    return True


def _is_attack(value: object) -> bool:
    return is_attack(value) and (not isinstance(value, str) or _is_text(value))


def _grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Moves the arguments that have flags of their own to where they belong."""
    env_args, agent_args = dict(settings.pop("env_args", {})), dict(settings.pop("agent_args", {}))
    env_args.update({name: settings.pop(name) for name in ENV_FLAGS if name in settings})
    agent_args.update({name: settings.pop(name) for name in AGENT_FLAGS if name in settings})
    if isinstance(env_args.get("suite"), list) and len(env_args["suite"]) == 1:
        env_args["suite"] = env_args["suite"][0]
    return {**settings, "env_args": env_args, "agent_args": agent_args}


def eval_configs(options: argparse.Namespace) -> list[EvalConfig]:
    """Returns the evaluations that a command line asks for, one for each agent.

    Raises:
        ValueError: Settings are unknown or make no sense.
    """
    settings = merge(options)
    agents = _as_list(settings.pop("agent", None))
    if not agents:
        raise ValueError("no agent given: --agent NAME; `fate-gym agents` lists them")
    if "tasks" in settings:
        settings["tasks"] = tuple(_as_list(settings["tasks"]))
    if "attack" in settings:
        env = settings.get("env", DEFAULT_ENV)
        settings["attack"] = tuple(attack for entry in _as_list(settings["attack"]) for attack in _attacks(entry, env))
    out = settings.pop("out", None)
    configs = [EvalConfig(**_with_agent(settings, agent)) for agent in agents]
    if len({config.agent for config in configs}) != len(configs):
        raise ValueError(f"an agent is given twice: {', '.join(agents)}")
    folders = [_folder(config, out, several=len(configs) > 1) for config in configs]
    return [dataclasses.replace(config, out=folder) for config, folder in zip(configs, folders, strict=True)]


def _with_agent(settings: dict[str, Any], agent: str) -> dict[str, Any]:
    """Adds one agent to the settings: a short text, or a YAML file with all that belongs to it; flags override it."""
    described: dict[str, Any] = {"agent": agent}
    if agent.endswith((".yaml", ".yml")):
        described = _grouped(_known(read_settings(agent), agent))
    allowed = {"agent", "agent_args", "defences", "env_args"}
    if not isinstance(described.get("agent"), str) or set(described) - allowed or described.get("env_args"):
        raise ValueError(f"{agent} must name its `agent`, and may have its options and `defences`, nothing else")
    agent_args = {**described.get("agent_args", {}), **settings["agent_args"]}
    env_args = {**model_name(described["agent"], settings.get("env", DEFAULT_ENV)), **settings["env_args"]}
    defences = tuple(settings.get("defences") or _as_list(described.get("defences")))
    return {
        **settings,
        "agent": described["agent"],
        "agent_args": agent_args,
        "env_args": env_args,
        "defences": defences,
    }


def _folder(config: EvalConfig, out: str | Path | None, *, several: bool) -> Path:
    """Chooses the run folder; without --out its name follows from the settings, so the same command resumes."""
    if out is None:
        return Path("runs") / config.folder_name()
    if not several:
        return Path(out)
    agent = re.sub(r"[^A-Za-z0-9]+", "-", config.agent).strip("-")
    same = agent == config.agent
    return Path(out) / (agent if same else f"{agent}-{hashlib.sha256(config.agent.encode()).hexdigest()[:8]}")


def _attacks(entry: object, env: str) -> list[Any]:
    """Reads one entry of `attack`: names, comma-separated, or a mapping of payloads; "none" is no attack."""
    if isinstance(entry, Mapping):
        return [dict(entry)]
    if entry is None:
        return [None]
    names = [known for name in str(entry).split(",") for known in (_all_attacks(env) if name == _ALL else [name])]
    return [None if name == "none" else name for name in names]


def _all_attacks(env: str) -> list[str]:
    names = [name for name in benchmark_class(find_environment(env)).choices().get("attack", ()) if name != "none"]
    if not names:
        raise ValueError(f"{env} does not say which attacks it has: name them, instead of `{_ALL}`")
    return names


def _pairs(group: str, texts: list[str]) -> dict[str, Any]:
    flag = f"--{group.removesuffix('s').replace('_', '-')}"
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"{flag} {text!r} must be KEY=VALUE")
        pairs[key] = parse_yaml(value, f"{flag} {key}")
    return pairs


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
