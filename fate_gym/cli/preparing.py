"""What is checked and known before an evaluation asks its agent anything; `fate-gym eval --dry-run` prints it."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from fate_gym.cli.settings import eval_configs, usage_errors
from fate_gym.cli.terminal import err, out
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.keys import Keys
from fate_gym.rollout import Agent

if TYPE_CHECKING:
    from fate_gym.evaluation.plan import Item, Plan
    from fate_gym.evaluation.store import RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One evaluation that can begin.

    Attributes:
        config: Its settings.
        agent: Who acts.
        plan: All of its episodes.
        found: The run that its folder holds already; None where it would be a new one.
    """

    config: EvalConfig
    agent: Agent
    plan: Plan
    found: RunFolder | None

    @property
    def done(self) -> int:
        """Number of its episodes that are there; those of a larger limit are none of its own."""
        return len(self.plan.items) - len(self.plan.items.keys.minus(self._found_keys))

    @property
    def left(self) -> Iterator[Item]:
        """The episodes to run."""
        return self.plan.items.without(self._found_keys)

    @property
    def _found_keys(self) -> Keys:
        return Keys() if self.found is None else self.found.done


def prepare(options: argparse.Namespace) -> list[Job]:
    """Makes the evaluations that a command line asks for, one for each agent; nothing is written, and nobody is asked.

    Raises:
        UsageError: A setting, a suite, an attack, a pattern or an agent cannot be used, or a budget cannot be kept.
        RunError: A folder belongs to another run.
    """
    from fate_gym.agents import load_agent
    from fate_gym.evaluation.budget import check_budget
    from fate_gym.evaluation.manifest import make_manifest
    from fate_gym.evaluation.store import RunFolder

    plans: dict[str, Plan] = {}
    jobs = []
    with usage_errors():
        configs = eval_configs(options)
        loads = [
            functools.partial(load_agent, each.agent, defences=each.defences, **each.agent_args) for each in configs
        ]
        agents = [_made(load, asks_nobody=options.dry_run) for load in loads]
        for config, agent in zip(configs, agents, strict=True):
            check_budget(config.max_cost, agent)
            settings = config.to_json()
            # Several agents on the same tasks share environments, which takes seconds and memory.
            key = json.dumps({**settings, **dict.fromkeys(("agent", "agent_args", "defences", "max_cost", "out"))})
            if key not in plans:
                with err.status(f"Loading {config.env}"):
                    plans[key] = _made(config.plan, asks_nobody=options.dry_run)
            with err.status(f"Reading {config.out}"):
                found = RunFolder.find(config.out, make_manifest(config, plans[key], agent), ignore=NOT_IN_DIGEST)
            jobs.append(Job(config, agent, plans[key], found))
    return jobs


def _made(make: Callable[[], T], *, asks_nobody: bool) -> T:
    """Makes what may want an API key; where nobody is asked, it is only noted that the key is missing."""
    from fate_gym.serving import MissingKeyError

    try:
        return make()
    except MissingKeyError as missing:
        if not asks_nobody:
            raise
        err.line(f"note: {missing}")
        os.environ[missing.variable] = "unused"
        try:
            return _made(make, asks_nobody=True)
        finally:
            del os.environ[missing.variable]


def print_dry_run(jobs: list[Job], *, as_json: bool) -> None:
    """Prints the settings, and in comments what the evaluations will take."""
    for job in jobs:
        if as_json:
            out.json(_dry_run(job), indent=None)
            continue
        for line in _comments(job):
            out.prose(line, start="# ")
        out.text(yaml.safe_dump([job.config.to_json()], sort_keys=False).rstrip("\n"))


def _dry_run(job: Job) -> dict[str, Any]:
    from fate_gym.evaluation.forecast import forecast

    expected = forecast(job.plan, job.left)
    return {
        "config": job.config.to_json(),
        "episodes": {"planned": len(job.plan.items), "done": job.done},
        "at_least": {**expected.usage(), "cost_usd": job.agent.cost(expected.usage()), "solved": expected.solved},
    }


def _comments(job: Job) -> Iterator[str]:
    found = _dry_run(job)
    planned, done = found["episodes"].values()
    attacks = Counter(key.partition("/")[0] for key in job.plan.items.keys)
    each = f" ({', '.join(f'{name} {count:,}' for name, count in attacks.items())})" if len(attacks) > 1 else ""
    yield f"{job.agent.name}: {planned:,} episodes{each}, {done:,} of them done."
    least = found["at_least"]
    if planned == done or least["cost_usd"] == 0:
        return
    way = "the shortest way through each task" if least["solved"] else "the first request of each episode"
    cost = "an unknown price" if least["cost_usd"] is None else f"about {least['cost_usd']:,.2f} USD"
    yield (
        f"At least {least['prompt_tokens']:,} tokens to read and {least['completion_tokens']:,} to write, for {cost}: "
        f"that is {way}, and a model takes more."
    )
