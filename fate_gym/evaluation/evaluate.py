"""One evaluation from settings to summary: what `fate-gym eval` and trainers call."""

from __future__ import annotations

import asyncio
from typing import Any

from fate_gym.episode import Episode
from fate_gym.evaluation.budget import Budget
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.plan import Plan
from fate_gym.evaluation.runner import OnDone, run_plan
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.summary import summarise
from fate_gym.rollout import ActFunction, Agent, as_agent


async def evaluate(
    config: EvalConfig,
    agent: Agent | ActFunction,
    *,
    plan: Plan | None = None,
    stop: asyncio.Event | None = None,
    on_done: OnDone = lambda episode: None,
) -> dict[str, Any]:
    """Runs an agent, writes the run folder `config.out`, and returns its summary.

    A folder that holds a part of the same run is completed.

    Args:
        config: The settings.
        agent: An agent, or an async function from observation to message.
        plan: Made from `config` if it is not given.
        stop: Once set, no further episode begins.
        on_done: Called with each episode when it ends.

    Raises:
        ValueError: The settings make no sense.
        RunError: The folder belongs to another run, is in use, or is damaged.
    """
    plan = plan or Plan(config)
    stop = stop or asyncio.Event()
    agent = as_agent(agent)
    manifest = {**plan.manifest(), "contaminated_by": list(agent.contaminated_by)}
    with RunFolder.open(config.out, manifest, ignore=NOT_IN_DIGEST) as folder:
        budget = Budget(config.max_cost, folder, stop)

        def done(episode: Episode) -> None:
            budget.spend(episode)
            on_done(episode)

        try:
            await run_plan(plan, agent, folder, stop=stop, on_done=done)
        finally:
            keys = [item.key for item in plan.items]
            summary = summarise(folder.episodes(), folder.failures(), folder.manifest, keys)
            folder.write_summary(summary)
    return summary
