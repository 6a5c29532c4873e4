"""The Python interface: one call from an agent to a run, as `fate-gym eval` is for a shell."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from fate_gym.agents import load_agent
from fate_gym.agents.defences import defend
from fate_gym.attack import Attack
from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.evaluation.config import EvalConfig, model_name
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.evaluation.playing import Player
from fate_gym.evaluation.report import remarks
from fate_gym.evaluation.run import Run
from fate_gym.evaluation.workers import Backend, engage
from fate_gym.loops import new_event_loop
from fate_gym.rollout import ActFunction, Agent, as_agent

T = TypeVar("T")

_log = logging.getLogger("fate_gym")


def evaluate(
    agent: str | Agent | ActFunction,
    env: str = DEFAULT_ENV,
    *,
    attack: Attack | Sequence[Attack] = None,
    tasks: str | Sequence[str] | None = None,
    defences: str | Sequence[str] = (),
    agent_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    repeats: int = 1,
    limit: int | None = None,
    concurrency: int = 8,
    workers: int = 1,
    backend: Backend = "local",
    max_cost: float | None = None,
    out: str | os.PathLike[str] | None = None,
    on_done: Callable[[Episode], None] | None = None,
    **env_args: Json,
) -> Run:
    """Runs an agent over the tasks of an environment, writes a run folder, and returns the run.

    It is what `fate-gym eval` does with one agent, and equal settings give equal runs. It works where an event loop
    runs already, as in a notebook. An interrupt (Ctrl-C) leaves a run that the same call completes.

    Args:
        agent: A short text such as "openai:gpt-4o-mini" (`fate_gym.agents.SPECS` lists them), an `Agent`, or a
            function, plain or async, from observation to action. An `Agent` is closed at the end, and may be used
            again.
        env: Gymnasium id.
        attack: The attack's name, custom payloads (vector -> text), or several of these, each run over all tasks;
            "none" among several runs the tasks without one. None leaves the environment its default, which is none.
        tasks: Only tasks whose ids match this pattern, or one of these, such as "banking/user_task_3/*".
        defences: Defences around the agent, the innermost first.
        agent_args: Options of an agent that is given as a text, such as `{"base_url": "http://127.0.0.1:8000/v1"}`.
        seed: Every episode's seed is derived from it.
        repeats: Episodes for each task and attack.
        limit: At most so many tasks for each attack, drawn by the seed.
        concurrency: Episodes under way at once, over all workers.
        workers: Processes that play them. With more than one, `agent` is a text, an `Agent` that can be made anew by
            the call that made it, or a function at the top of a module; a script needs `if __name__ == "__main__":`.
        backend: Where the processes are: "local" on this machine, "ray" on a Ray cluster.
        max_cost: No further episode begins once so many USD are spent.
        out: The run folder. One that holds a part of the same run is completed, and what it holds is not run again:
            give another after a change of the agent's code. None for a folder in `runs`: for a text one named after the
            settings, so that the same call goes on from there, for anything else a new one.
        on_done: Called with each episode, as the run holds it, when it has ended and is stored; in another thread.
        **env_args: Further arguments of the environment, such as `suite="banking"`.

    Raises:
        TypeError, ValueError: The settings make no sense.
        FateGymError: The agent cannot be used, the data are not at hand, or `out` belongs to another run.
    """
    if isinstance(agent, str):
        named, acting = agent, load_agent(agent, **(agent_args or {}))
    elif agent_args:
        raise TypeError("agent_args are the options of an agent that is given as a text; give this one its own")
    else:
        acting = as_agent(agent)
        named = acting.name.removesuffix("".join(f"+{defence}" for defence in acting.defences))
    config = EvalConfig(
        agent=named,
        agent_args=dict(agent_args or {}),
        defences=(*acting.defences, *_texts(defences)),
        env=env,
        attack=_attacks(attack),
        env_args={**model_name(named, env), **env_args},
        tasks=None if tasks is None else _texts(tasks),
        seed=seed,
        repeats=repeats,
        limit=limit,
        concurrency=concurrency,
        workers=workers,
        backend=backend,
        max_cost=max_cost,
    )
    folder = Path("runs") / config.folder_name() if out is None else Path(out)
    if out is None and not isinstance(agent, str):
        folder = _unused(folder)
    return _finish(_evaluate(dataclasses.replace(config, out=folder), defend(acting, *_texts(defences)), on_done))


async def _evaluate(config: EvalConfig, agent: Agent, on_done: Callable[[Episode], None] | None) -> Run:
    def done(finished: Finished) -> None:
        if on_done is not None:
            on_done(finished.episode())

    plan = config.plan()
    player = Player(plan.environments, agent, Finished.of)
    workers = engage(player, config.workers, config.backend, on_gpu=agent.on_gpu)
    try:
        await workers.do(Player.check, plan.has_tools())
        run = await run_evaluation(config, agent, plan=plan, workers=workers, on_done=done)
        for remark in remarks(run):
            _log.warning("%s: %s", run.path, remark)
        return run
    finally:
        await workers.aclose()


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in a thread of its own: the caller's may have a running event loop already."""
    loop = new_event_loop()

    def run() -> T:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(work)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    with ThreadPoolExecutor(1, thread_name_prefix="fate-gym") as thread:
        try:
            return thread.submit(contextvars.copy_context().run, run).result()
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeError):  # The loop is closed: the work has just ended.
                loop.call_soon_threadsafe(cancel)
            raise


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _attacks(given: Attack | Sequence[Attack]) -> tuple[Attack, ...] | None:
    if given is None:
        return None
    several: Sequence[Attack] = (given,) if isinstance(given, str | Mapping) else given
    # As the command line has it: a run that either of them began, the other completes.
    return tuple(None if isinstance(attack, str) and attack == "none" else attack for attack in several)


def _unused(folder: Path) -> Path:
    """Returns the folder, or one beside it with the first free number behind its name."""
    paths = chain([folder], (folder.with_name(f"{folder.name}-{i}") for i in count(2)))
    return next(path for path in paths if not path.exists())
