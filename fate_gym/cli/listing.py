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
from fate_gym.evaluation.plan import DEFAULT_ENV


def add_commands(commands: Any) -> None:
    """Adds the listing commands."""
    tasks = commands.add_parser(
        "tasks",
        help="list the tasks of an environment",
        description="Lists the ids of an environment's tasks; with --json, all that is known of each task.",
    )
    add_env_flags(tasks, attacks="The attack on the tasks (default: none).")
    tasks.set_defaults(run=list_tasks)
    listings = {
        "attacks": (list_attacks, "the attacks on AgentDojo's tasks"),
        "agents": (list_agents, "the agents, and the defences around them"),
        "envs": (list_envs, "the registered environments"),
    }
    parsers = {
        name: commands.add_parser(name, help=f"list {text}", description=f"Lists {text}.")
        for name, (_, text) in listings.items()
    }
    for name, (function, _) in listings.items():
        parsers[name].set_defaults(run=function)
    for parser in (tasks, *parsers.values()):
        parser.add_argument("--json", action="store_true", help="Print one JSON object a line.")


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
    from fate_gym.benchmarks.agentdojo.attacks import DESCRIPTIONS, attack_names

    _print(((name, DESCRIPTIONS.get(name, "")) for name in attack_names()), "attack", as_json=options.json)
    return 0


def list_agents(options: argparse.Namespace) -> int:
    """Prints the agents' texts, and the defences that go around them."""
    from fate_gym.agents import SPECS
    from fate_gym.agents.defences import DEFENCES

    _print(SPECS.items(), "agent", as_json=options.json)
    if not options.json:
        out.text("\ndefences (--defence):")
    _print(DEFENCES.items(), "defence", as_json=options.json)
    return 0


def list_envs(options: argparse.Namespace) -> int:
    """Prints the registered environments of this package and of others that use it."""
    ours = [spec for spec in gym.registry.values() if spec.entry_point == ENTRY_POINT]
    _print(((spec.id, str(spec.kwargs["benchmark"])) for spec in ours), "environment", as_json=options.json)
    return 0


def _print(rows: Iterable[tuple[str, str]], kind: str, *, as_json: bool) -> None:
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    for name, text in listed:
        if as_json:
            out.json({"kind": kind, "name": name, "description": text}, indent=None)
        else:
            out.line(f"{name:<{width}}  {text}".rstrip())
