"""`fate-gym eval`: runs agents and prints the table."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fate_gym.cli.settings import add_agent_flags, add_env_flags, eval_configs, usage_errors
from fate_gym.evaluation.config import EvalConfig
from fate_gym.rendering import visible
from fate_gym.rollout import Agent

_INTERRUPTED = 130


def add_commands(commands: Any) -> None:
    """Adds `eval`."""
    parser = commands.add_parser("eval", help="run agents over a benchmark and print what they did")
    parser.set_defaults(run=run)
    parser.add_argument("--config", metavar="NAME", help="settings from a YAML file or a shipped configuration")
    add_agent_flags(parser)
    add_env_flags(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, help="every episode's seed is derived from it (default: 0)")
    group.add_argument("--repeats", type=int, metavar="N", help="episodes for each task and attack (default: 1)")
    group.add_argument("--tasks", nargs="+", metavar="PATTERN", help="only tasks whose ids match, such as 'banking/*'")
    group.add_argument("--limit", type=int, metavar="N", help="at most so many tasks for each attack")
    group.add_argument("--concurrency", type=int, metavar="N", help="episodes under way at once (default: 8)")
    group.add_argument("--max-cost", type=float, metavar="USD", help="begin no further episode once so much is spent")
    group.add_argument("--out", metavar="DIR", help="run folder; one that holds a part of the same run is completed")
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    group.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")


def run(options: argparse.Namespace) -> int:
    """Runs the evaluations one after the other."""
    from fate_gym.agents import load_agent

    with usage_errors():
        configs = eval_configs(options)
        agents = [load_agent(config.agent, defences=config.defences, **config.agent_args) for config in configs]
    if options.dry_run:
        sys.stdout.write(yaml.safe_dump([config.to_json() for config in configs], sort_keys=False))
        return 0
    summaries = []
    interrupted = False
    for config, agent in zip(configs, agents, strict=True):
        summary, interrupted = asyncio.run(_evaluate_and_close(config, agent))
        summaries.append(summary)
        if interrupted:
            break
    _print(summaries, as_json=options.json)
    if interrupted:
        sys.stderr.write("Interrupted. The same command completes the run.\n")
        return _INTERRUPTED
    if any(summary["episodes"]["missing"] for summary in summaries):
        sys.stderr.write("The budget is spent. A larger --max-cost completes the run.\n")
        return 1
    return int(any(summary["episodes"]["errors"] for summary in summaries))


async def _evaluate_and_close(config: EvalConfig, agent: Agent) -> tuple[dict[str, Any], bool]:
    try:
        return await _evaluate(config, agent)
    finally:
        await agent.aclose()


async def _evaluate(config: EvalConfig, agent: Agent) -> tuple[dict[str, Any], bool]:
    """Runs one evaluation with a progress bar; the first Ctrl-C ends it gently, the second at once.

    Returns:
        The summary, and whether it was interrupted.
    """
    from fate_gym.evaluation.evaluate import evaluate
    from fate_gym.evaluation.plan import Plan
    from fate_gym.evaluation.store import RunFolder

    console = Console(stderr=True)
    with console.status(f"Loading {config.env}"), usage_errors():
        plan = Plan(config)
        await agent.check()
    stop = asyncio.Event()
    interrupts = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[errors]}"), console=console) as bar:
        task = bar.add_task(visible(agent.name), total=len(plan.items), errors="")
        errors = 0

        def on_done(episode: Any) -> None:
            nonlocal errors
            errors += episode.status != "ok"
            bar.update(task, advance=1, errors=f"{errors} errors" if errors else "")

        if (config.out / "manifest.json").exists():
            bar.update(task, completed=len(RunFolder.read(config.out).done & {item.key for item in plan.items}))
        work = asyncio.ensure_future(evaluate(config, agent, plan=plan, stop=stop, on_done=on_done))

        def on_interrupt() -> None:
            nonlocal interrupts
            interrupts += 1
            stop.set()
            if interrupts > 1:
                work.cancel()
            else:
                console.print("Stopping: episodes under way will end; Ctrl-C again leaves them.")

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
        try:
            summary = await work
        except asyncio.CancelledError:
            summary = RunFolder.read(config.out).summary()
    return summary, interrupts > 0 and summary["episodes"]["missing"] > 0


def _print(summaries: list[dict[str, Any]], *, as_json: bool) -> None:
    from fate_gym.evaluation.report import notes, results_tables

    if as_json:
        shown: Any = summaries[0] if len(summaries) == 1 else summaries
        sys.stdout.write(json.dumps(shown, indent=2, sort_keys=True) + "\n")
        return
    console = Console()
    for table in results_tables(summaries):
        console.print(table)
    console.print(notes(summaries), highlight=False, markup=False)
    for summary in summaries:
        console.print(f"run: {visible(summary['config']['out'])}", highlight=False, markup=False, soft_wrap=True)
