"""The settings of a stranger's run, read so that nothing in them can run code, reach a server or open a file."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import gymnasium as gym

from fate_gym.benchmark import ENTRY_POINT, Benchmark, Disclosure, JudgeOption, benchmark_class, disclosure
from fate_gym.errors import UsageError
from fate_gym.evaluation.config import EvalConfig, check_types
from fate_gym.plugins import import_plugin
from fate_gym.verifiers.judge import is_model

_LOOP: Final = ("max_turns", "max_messages", "system_prompt", "verbatim")
"""Arguments of the episode loop itself that may come from a manifest; `benchmark` could name any callable."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a manifest says was run.

    Attributes:
        config: The evaluation, without what is left out.
        judges: Judges that the run names, by option: how far their word goes, and their names, "" where the settings
            do not show it. They are left out of `config`, since asking one again would send the traces to a server of
            the submitter's choice, or import code.
        paths: Options that name a path on the machine of the run; left out of `config`, the data lie elsewhere here.
    """

    config: EvalConfig
    judges: Mapping[str, tuple[JudgeOption, str]]
    paths: tuple[str, ...]


def read_settings(manifest: Mapping[str, Any], trusted: str | None) -> Settings:
    """Reads the settings of a manifest.

    Args:
        manifest: As stored.
        trusted: Module of a third party that registers the environment; imported.

    Raises:
        UsageError: The environment is not registered here.
        ValueError: The settings are not what `fate-gym eval` writes.
    """
    stored = manifest.get("config")
    if not isinstance(stored, dict):
        raise ValueError("config must be an object")
    unlike = sorted(set(stored) ^ {entry.name for entry in fields(EvalConfig)})
    if unlike:
        raise ValueError(f"config must have the settings of this fate-gym, which differ in {', '.join(unlike)}")
    try:
        check_types(stored)
    except ValueError as error:
        raise ValueError(f"config.{error}") from error
    env = _registered(stored["env"], trusted)
    benchmark = benchmark_class(env)
    given = stored["env_args"]
    _check_arguments(env, benchmark, given)
    judges = {
        name: (option, _judge_name(name, given[name]))
        for name, option in benchmark.judge_options.items()
        if given.get(name) is not None
    }
    declared = disclosure(env) or Disclosure()
    paths = tuple(name for name in declared.path_options if name in given)
    left = {name: value for name, value in given.items() if name not in (*benchmark.judge_options, *paths)}
    values = {
        **stored,
        "env": env,
        "env_args": left,
        "defences": tuple(stored["defences"]),
        "attack": None if stored["attack"] is None else tuple(stored["attack"]),
        "tasks": None if stored["tasks"] is None else tuple(stored["tasks"]),
        "out": Path(stored["out"]),
    }
    return Settings(EvalConfig(**values), judges, paths)


def _registered(env: str, trusted: str | None) -> str:
    """Returns the plain id; gym.make would import whatever module an id names before its colon."""
    if trusted is not None:
        import_plugin(trusted)
    plain = env.rpartition(":")[2]
    spec = gym.registry.get(plain)
    if spec is None or spec.entry_point != ENTRY_POINT:
        raise UsageError(
            f"the run is of {env!r}, which is not registered here: if it is a third party's that you trust, "
            "name the module that registers it with --trust MODULE"
        )
    return plain


def _check_arguments(env: str, benchmark: type[Benchmark], arguments: Collection[str]) -> None:
    unknown = sorted(set(arguments) - set(inspect.signature(benchmark).parameters) - set(_LOOP))
    if unknown:
        raise ValueError(f"{env} takes no argument {', '.join(unknown)}")


def _judge_name(option: str, judge: object) -> str:
    """Returns the name of a judge that is a model, "" for a function: it may call itself anything."""
    model = judge.get("model") if isinstance(judge, Mapping) else judge
    if not isinstance(model, str):
        raise ValueError(f"config.env_args.{option} names no judge")
    return model if is_model(model) else ""
