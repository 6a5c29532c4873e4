"""`fate-gym eval`: runs agents and prints the table."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from fate_gym import loops
from fate_gym.cli.preparing import Job, prepare, print_dry_run
from fate_gym.cli.settings import add_agent_flags, add_env_flags, usage_errors
from fate_gym.cli.stopping import Stopped, on_signals
from fate_gym.cli.terminal import err, out
from fate_gym.errors import DiskError, UsageError
from fate_gym.storage import make_folder

if TYPE_CHECKING:
    from fate_gym.evaluation.finished import Finished
    from fate_gym.evaluation.playing import Player
    from fate_gym.evaluation.run import Run
    from fate_gym.evaluation.workers import Workers

_DISK_TROUBLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
"""What may be mended without another --out."""


def add_commands(commands: Any) -> None:
    """Adds `eval`."""
    parser = commands.add_parser(
        "eval",
        help="run agents on a benchmark and print their results",
        description="Runs agents on a benchmark, writes a run folder for each, and prints a table of the results. "
        "Run the same command again to complete a run that was interrupted.",
        examples=[
            "eval --config demo",
            "eval --agent openai:gpt-4o-mini --attack none direct --max-cost 5",
            "eval --agent import:my_module:act --suite banking --limit 10",
        ],
    )
    parser.set_defaults(run=run, resumable=True)
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="A YAML file of settings, or the name of a configuration that ships with the package. Flags override it.",
    )
    add_agent_flags(parser)
    add_env_flags(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, metavar="N", help="The seed from which all others follow (default: 0).")
    group.add_argument("--repeats", type=int, metavar="N", help="Episodes for each task and attack (default: 1).")
    group.add_argument(
        "--tasks", nargs="+", metavar="PATTERN", help="Run only tasks whose ids match a pattern, such as 'banking/*'."
    )
    group.add_argument("--limit", type=int, metavar="N", help="Run at most N tasks for each attack, drawn by the seed.")
    group.add_argument("--concurrency", type=int, metavar="N", help="Episodes that run at once (default: 8).")
    group.add_argument(
        "--workers", type=int, metavar="N", help="Processes that play them, each with an agent of its own (default: 1)."
    )
    group.add_argument(
        "--backend",
        metavar="NAME",
        help="Where the processes are: on this machine (`local`, the default), or on a Ray cluster (`ray`).",
    )
    group.add_argument(
        "--max-cost",
        type=float,
        metavar="USD",
        help="Begin no episode once this much has been spent. Prices of OpenAI's models are known; give "
        "others as --agent-arg 'prices={MODEL: {input: 1.0, output: 2.0}}', in USD per million tokens.",
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        help="The run folder; with several agents, the folder of their run folders (default: a folder in `runs`).",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="Print each agent's summary, or plan with --dry-run, as a line of JSON.",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="Check everything, print the settings, the number of episodes and an estimate of the cost, and stop.",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the evaluations one after the other."""
    jobs = prepare(options)
    if options.dry_run:
        print_dry_run(jobs, as_json=options.json)
        return 0
    runs: list[Run] = []
    stop: Stopped | None = None
    try:
        for job in jobs:
            finished, stop = loops.run(_evaluate_and_close(job))
            runs.append(finished)
            if stop is not None:
                break
    finally:
        # Also where a later agent cannot be used: what is done is shown first.
        if runs:
            _print(runs, as_json=options.json)
            _print_remarks(runs)
    if stop is not None:
        raise stop
    if any(run.exhausted is not None for run in runs):
        return 1
    if any(each.summary["episodes"]["missing"] for each in runs):
        err.line("The budget is spent. A larger --max-cost completes the run.")
        return 1
    return int(any(each.failures for each in runs))


async def _evaluate_and_close(job: Job) -> tuple[Run, Stopped | None]:
    from fate_gym.evaluation.finished import Finished
    from fate_gym.evaluation.playing import Player
    from fate_gym.evaluation.workers import engage

    player = Player(job.plan.environments, job.agent, Finished.of)
    workers = engage(player, job.config.workers, job.config.backend, on_gpu=job.agent.on_gpu)
    try:
        return await _evaluate(job, workers)
    finally:
        await workers.aclose()


async def _evaluate(job: Job, workers: Workers[Player[Finished]]) -> tuple[Run, Stopped | None]:
    """Runs one evaluation with a progress bar; the first Ctrl-C ends it gently, the second and SIGTERM at once.

    Returns:
        The run, and the signal that left episodes to run, if one did.
    """
    from fate_gym.evaluation.evaluate import run_evaluation
    from fate_gym.evaluation.playing import Player
    from fate_gym.evaluation.run import load_run

    config, agent, plan = job.config, job.agent, job.plan
    with _made_folder(config.out), err.status(f"Asking {agent.name}"), usage_errors():
        await workers.do(Player.check, plan.has_tools())
    stop = asyncio.Event()
    signals: list[int] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with err.progress(*columns, "{task.fields[errors]}") as bar:
        task = bar.add_task(agent.name, total=len(plan.items), completed=job.done, errors="")
        errors = 0

        def on_done(finished: Finished) -> None:
            nonlocal errors
            errors += finished.result.status != "ok"
            bar.update(task, advance=1, errors=f"{errors} errors" if errors else "")

        work = asyncio.ensure_future(
            run_evaluation(config, agent, plan=plan, found=job.found, workers=workers, stop=stop, on_done=on_done)
        )

        def on_signal(number: int) -> None:
            stop.set()
            signals.append(number)
            if number == signal.SIGINT and len(signals) == 1:
                err.line("Stopping: episodes under way will end; Ctrl-C again leaves them.")
            else:
                work.cancel()

        with on_signals(asyncio.get_running_loop(), on_signal):
            try:
                run = await work
            except asyncio.CancelledError:
                # `asyncio.run` waits for its executor's threads, and those of the episodes left behind may take long.
                asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
                run = load_run(config.out)
    left = run.summary["episodes"]["missing"] != 0
    return run, Stopped(signals[-1]) if signals and left else None


@contextmanager
def _made_folder(path: Path) -> Iterator[None]:
    """Makes the run folder, so that an impossible path is refused before a model is asked anything.

    If the block fails, the folders that were made for it are removed, as long as they are empty.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        make_folder(path)
    except (OSError, DiskError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _DISK_TROUBLE:
            raise
        raise UsageError(f"{error}: give another --out") from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def _print(runs: list[Run], *, as_json: bool) -> None:
    from fate_gym.evaluation.report import notes, results_tables

    summaries = [run.summary for run in runs]
    if as_json:
        for summary in summaries:
            out.json(summary, indent=None)
        return
    for table in results_tables(summaries):
        out.table(table)
    out.prose(notes(summaries))
    for run in runs:
        out.line(f"run: {run.path}")


def _print_remarks(runs: list[Run]) -> None:
    from fate_gym.evaluation.report import remarks

    for run in runs:
        for remark in remarks(run):
            err.line(f"{run.path}: {remark}")
