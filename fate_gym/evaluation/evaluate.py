"""One evaluation from settings to a run: what `fate_gym.evaluate`, `fate-gym eval` and trainers call."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

from fate_gym.errors import RunError
from fate_gym.evaluation.budget import Budget, check_budget
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.faults import Faults
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.manifest import make_manifest
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.run import Run, run_of
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.workers import InProcess, Workers
from fate_gym.evaluation.writing import Writer
from fate_gym.rollout import ActFunction, Agent, as_agent


async def run_evaluation(
    config: EvalConfig,
    agent: Agent | ActFunction,
    *,
    plan: Plan | None = None,
    found: RunFolder | None = None,
    workers: Workers[Player[Finished]] | None = None,
    stop: asyncio.Event | None = None,
    on_done: Callable[[Finished], None] = lambda finished: None,
) -> Run:
    """Runs an agent, and writes the run folder `config.out`.

    A folder that holds a part of the same run is completed; episodes that errored are tried again. The limit of a run
    is the largest that it was ever started with: a smaller one runs no more than it says, and what it leaves out of a
    larger one is counted as missing.

    Args:
        config: The settings.
        agent: An agent, or a function from observation to message.
        plan: Made from `config` if it is not given.
        found: The run that the folder holds, as `RunFolder.find` returned it, so that it is not read again.
        workers: Who plays the plan's episodes with such an agent, and where (`engage`); this process if not given.
        stop: Once set, no further episode begins.
        on_done: Called with each episode when it has ended and is stored.

    Raises:
        ValueError: The settings make no sense.
        UsageError: There is a budget, and nobody knows what the agent costs.
        RunError: The folder belongs to another run, is in use, or is damaged; or an episode could not be written.
        WorkerError: No worker is left.
        PluginError: Nothing was scored, and the first episodes failed by the same exception; they are stored as errors.
    """
    plan = plan or config.plan()
    stop = stop or asyncio.Event()
    agent = as_agent(agent)
    workers = workers or InProcess(Player(plan.environments, agent, Finished.of))
    check_budget(config.max_cost, agent)
    manifest = make_manifest(config, plan, agent)
    with RunFolder.open(config.out, manifest, ignore=NOT_IN_DIGEST, found=found) as folder:
        planned = _whole(config, plan, folder)
        writer = Writer(folder)
        budget = Budget(config.max_cost, agent, folder, stop)
        faults = Faults(stop, scored=bool(folder.done))

        async def keep(item: Item, finished: Finished) -> None:
            await writer.store(finished)
            budget.spend(finished)
            faults.ended(finished)
            on_done(finished)

        try:
            exhausted = await run_episodes(
                plan.items.without(folder.done),
                workers,
                concurrency=config.concurrency,
                on_done=keep,
                stop=stop,
                on_fault=faults.note,
            )
        except BaseException:
            with contextlib.suppress(RunError):  # What ended the run is what its user must hear of.
                _conclude(folder, planned)
            raise
        run = _conclude(folder, planned)
        faults.check()
    return dataclasses.replace(run, exhausted=exhausted)


def _conclude(folder: RunFolder, planned: Plan) -> Run:
    """Writes the summary of what there is."""
    folder.check()
    run = run_of(folder, planned=planned.items.keys)
    folder.write_summary(run.summary)
    return run


def _whole(config: EvalConfig, plan: Plan, folder: RunFolder) -> Plan:
    """Returns the plan of all episodes that the run should have, and lets its manifest name the larger limit."""
    stored: int | None = folder.manifest["config"]["limit"]
    if stored != config.limit and (config.limit is None or (stored is not None and stored < config.limit)):
        settings = {**folder.manifest["config"], "limit": config.limit}
        folder.replace_manifest({**folder.manifest, "config": settings})
    elif stored != config.limit:
        plan = dataclasses.replace(config, limit=stored).plan()
    return plan
