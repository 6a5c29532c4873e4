"""`fate-gym tasks|attacks|agents|envs`: what there is, and what each environment and agent takes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fate_gym.arguments import Argument
from fate_gym.benchmark import disclosure
from fate_gym.catalogue import environment_page, environments
from fate_gym.cli.parser import Parser
from fate_gym.cli.settings import AGENT_FLAGS, ENV_FLAGS, add_env_flags, make_env, usage_errors
from fate_gym.cli.terminal import err, out


def add_commands(commands: Any) -> None:
    """Adds the listing commands."""
    tasks: Parser = commands.add_parser(
        "tasks",
        help="list the tasks of an environment",
        description="Lists the ids of an environment's tasks. With --json, prints all that is known of each task: its "
        "suite and notes on its graders, and, where the licence allows it, the user's prompt and the attacker's goal.",
        examples=["tasks --suite banking --attack direct", "tasks --env fate/AgentHarm-v0 --json"],
    )
    add_env_flags(tasks, attacks="The attack on the tasks (default: none).")
    attacks: Parser = commands.add_parser(
        "attacks",
        help="list the attacks on AgentDojo's tasks",
        description="Lists the attacks on AgentDojo's tasks, the values of --attack.",
        examples=["attacks"],
    )
    agents: Parser = commands.add_parser(
        "agents",
        help="list the agents and defences, or the options of an agent",
        description="Lists the agents and the defences around them; with a name, the options of that agent.",
        examples=["agents", "agents openai"],
    )
    agents.add_argument("agent", metavar="NAME", nargs="?", help="Show the options of this agent, such as `openai`.")
    envs: Parser = commands.add_parser(
        "envs",
        help="list the environments, or the arguments of an environment",
        description="Lists the environments; with an id, what that environment is and the arguments that it takes.",
        examples=["envs", "envs fate/AgentDojo-v0"],
    )
    envs.add_argument("env", metavar="ID", nargs="?", help="Show this environment and its arguments.")
    commands_run = {tasks: list_tasks, attacks: list_attacks, agents: list_agents, envs: list_envs}
    for parser, function in commands_run.items():
        parser.set_defaults(run=function)
        parser.add_argument("--json", action="store_true", help="Print one JSON object a line.")


def list_tasks(options: argparse.Namespace) -> int:
    """Prints task ids, or whole descriptions."""
    env, env_id = make_env(options)
    declared = disclosure(env_id)
    texts = declared is not None and not declared.confidential
    for task_id in env.tasks:
        if options.json:
            out.json(_described(env, task_id, texts=texts), indent=None)
        else:
            out.line(task_id)
    if options.json and not texts:
        err.line(f"Prompts are left out: the texts of {env_id} must not be published.")
    return 0


def list_attacks(options: argparse.Namespace) -> int:
    """Prints AgentDojo's registered attacks."""
    from fate_gym.benchmarks.agentdojo.attacks import DESCRIPTIONS, attack_names

    _print({name: DESCRIPTIONS.get(name, "") for name in attack_names()}, "attack", as_json=options.json)
    return 0


def list_agents(options: argparse.Namespace) -> int:
    """Prints the agents and defences, or one agent's options."""
    from fate_gym.agents import SPECS, describe_agent
    from fate_gym.agents.defences import DEFENCES

    if options.agent is None:
        _print(SPECS, "agent", as_json=options.json)
        if not options.json:
            out.text("\ndefences (--defence):")
        _print(DEFENCES, "defence", as_json=options.json)
        return 0
    with usage_errors():
        described = describe_agent(options.agent)
    if options.json:
        out.json({"kind": "agent", "name": options.agent, **dataclasses.asdict(described)}, indent=None)
        return 0
    out.line(options.agent)
    _print_paragraphs(described.summary, described.text)
    _print_arguments("options (--agent-arg NAME=VALUE)", described.arguments, AGENT_FLAGS)
    return 0


def list_envs(options: argparse.Namespace) -> int:
    """Prints the registered environments of this package and of others that use it, or one in full."""
    if options.env is None:
        _print(environments(), "environment", as_json=options.json)
        return 0
    page = environment_page(options.env)
    if options.json:
        out.json({"kind": "environment", **dataclasses.asdict(page)}, indent=None)
        return 0
    out.line(page.id)
    _print_paragraphs(page.summary, page.text)
    _print_arguments("arguments (--env-arg NAME=VALUE)", page.arguments, ("attack", *ENV_FLAGS))
    _print_arguments("arguments of every environment", page.loop_arguments, ENV_FLAGS)
    return 0


def _described(env: Any, task_id: str, *, texts: bool) -> dict[str, Any]:
    """Describes a task.

    Args:
        env: The environment.
        task_id: The task.
        texts: Whether its texts may be shown.
    """
    task = dataclasses.asdict(env.task(task_id))
    del task["ground_truth"]
    if texts:
        opening = env.benchmark.open(task_id, 0).opening
        task["prompt"] = "\n\n".join(message["content"] for message in opening if message["role"] == "user")
        task["injection_goal"] = env.benchmark.injection_goal(task_id)
    return task


def _print(entries: Mapping[str, str], kind: str, *, as_json: bool) -> None:
    if not as_json:
        out.entries(entries.items())
        return
    for name, text in entries.items():
        out.json({"kind": kind, "name": name, "description": text}, indent=None)


def _print_paragraphs(*texts: str) -> None:
    for text in texts:
        for paragraph in filter(None, text.split("\n\n")):
            out.text("")
            out.prose(" ".join(paragraph.split()))


def _print_arguments(title: str, arguments: Iterable[Argument], flags: Iterable[str]) -> None:
    listed = list(arguments)
    if not listed:
        return
    out.text(f"\n{title}:")
    for argument in listed:
        flag = f"  --{argument.name.replace('_', '-')}" if argument.name in flags else ""
        default = "required" if argument.default is None else f"default {argument.default}"
        out.prose(f"{argument.name}  {argument.type}  {default}{flag}", start="  ")
        out.prose(argument.meaning, start="      ")
        if argument.accepted:
            out.prose(f"accepted: {', '.join(argument.accepted)}", start="      ")
