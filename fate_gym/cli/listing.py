"""`fate-gym tasks|attacks|agents|envs`: what there is."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import Any

import gymnasium as gym

from fate_gym.benchmark import ENTRY_POINT
from fate_gym.cli.settings import add_env_flags, merge, usage_errors
from fate_gym.cli.terminal import out
from fate_gym.evaluation.config import DEFAULT_ENV


def add_commands(commands: Any) -> None:
    """Adds the listing commands."""
    tasks = commands.add_parser("tasks", help="list an environment's tasks")
    add_env_flags(tasks)
    tasks.add_argument("--json", action="store_true", help="print a JSON object a line, with all that is known")
    tasks.set_defaults(run=list_tasks)
    for name, function in (("attacks", list_attacks), ("agents", list_agents), ("envs", list_envs)):
        commands.add_parser(name, help=f"list the {name} there are").set_defaults(run=function)


def list_tasks(options: argparse.Namespace) -> int:
    """Prints task ids, or whole descriptions."""
    with usage_errors():
        settings = merge(options)
        attacks = [name for entry in settings.get("attack", []) for name in entry.split(",")]
        if len(attacks) > 1:
            raise ValueError(f"tasks are listed for one attack at a time, got {', '.join(attacks)}")
        attack = {"attack": attacks[0]} if attacks else {}
        env: Any = gym.make(settings.get("env", DEFAULT_ENV), **settings["env_args"], **attack).unwrapped
    for task_id in env.tasks:
        if not options.json:
            out.line(task_id)
            continue
        task = dataclasses.asdict(env.task(task_id))
        task.pop("ground_truth", None)
        out.json(task, indent=None)
    return 0


def list_attacks(options: argparse.Namespace) -> int:
    """Prints AgentDojo's registered attacks."""
    from agentdojo.attacks.attack_registry import ATTACKS

    from fate_gym.benchmarks.agentdojo.attacks import attack_names, is_dos

    _print((name, _first_line(ATTACKS[name]) + (" (denial of service)" * is_dos(name))) for name in attack_names())
    return 0


def list_agents(options: argparse.Namespace) -> int:
    """Prints the agents' texts, and the defences that go around them."""
    from fate_gym.agents import SPECS
    from fate_gym.agents.defences import DEFENCES

    _print(SPECS.items())
    out.text("\ndefences (--defence):")
    _print(DEFENCES.items())
    return 0


def list_envs(options: argparse.Namespace) -> int:
    """Prints the registered environments of this package and of others that use it."""
    ours = [spec for spec in gym.registry.values() if spec.entry_point == ENTRY_POINT]
    _print((spec.id, str(spec.kwargs["benchmark"])) for spec in ours)
    return 0


def _first_line(kind: type) -> str:
    return (kind.__dict__.get("__doc__") or "").strip().split("\n")[0]


def _print(rows: Iterable[tuple[str, str]]) -> None:
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    for name, text in listed:
        out.line(f"{name:<{width}}  {text}".rstrip())
