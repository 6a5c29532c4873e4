"""Run folders, read for a leaderboard: every number computed anew from the episodes, which are never all in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Final

from fate_gym.errors import RunError
from fate_gym.evaluation.run import Run, load_run
from fate_gym.leaderboards.submissions import Submission, read_submission


@dataclass(frozen=True, repr=False)
class LoadedRun(Run):
    """A run, ready for tables and pages.

    Attributes:
        run_id: Names it in addresses: letters, digits, "-", "_" and "." only, unique among the runs loaded together.
        malformed: Number of records that are not of an episode's shape; they are in no number and on no page.
        submission: What `submission.yaml` says; None without one.
        contaminated_by: What the model has seen of the benchmark, as far as the folder says.
    """

    run_id: str
    malformed: int
    submission: Submission | None
    contaminated_by: tuple[str, ...]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Returns the run folders among paths and below them, each once, in order.

    Raises:
        RunError: A path holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = [path] if (path / "manifest.json").is_file() else sorted(p.parent for p in path.rglob("manifest.json"))
        if not below:
            raise RunError(f"{path} holds no run (no manifest.json in it or below): give the folders of runs")
        found.update({folder.resolve(): None for folder in below})
    return list(found)


_READ: Final = (
    *("manifest.json", "episodes.jsonl", "failures.jsonl", "recorded.jsonl", "summary.json"),
    *("submission.yaml", "fate-gym.json", "steps.jsonl"),
)
"""Files of a run folder that boards and their site read."""

LeaveOut = Callable[[Path, str], None]
"""Is told of a run that is left out: its folder, and the reason."""


def load_runs(paths: Sequence[Path], *, leave_out: LeaveOut | None = None) -> list[LoadedRun]:
    """Loads run folders, and gives each an id of its own.

    Args:
        paths: The folders.
        leave_out: Called with each run that cannot be loaded, and why; the others are loaded all the same. None to
            raise for the first.

    Raises:
        RunError: A folder is not a run, is damaged, or its `submission.yaml` is.
    """
    taken: set[str] = set()
    runs = []
    for path in paths:
        try:
            run = _load(path, taken)
        except RunError as error:
            if leave_out is None:
                raise
            leave_out(path, str(error))
            continue
        taken.add(run.run_id)
        runs.append(run)
    return runs


def _load(path: Path, taken: set[str]) -> LoadedRun:
    refuse_links(path)
    problems: list[RunError] = []
    run = load_run(path, on_problem=problems.append)
    marks = set(_names(run.manifest.get("contaminated_by")))
    submission = read_submission(path)
    if submission:
        marks.update(submission.contaminated_by)
    return LoadedRun(
        **vars(run),
        run_id=_run_id(run.manifest["config"], path, taken),
        malformed=len(problems),
        submission=submission,
        contaminated_by=tuple(sorted(marks)),
    )


def refuse_links(run: Path) -> None:
    """Refuses a run folder whose files lie elsewhere: a stranger's link may lead to what is none of the stranger's.

    Raises:
        RunError: A file of it is a link that leads out of the folder.
    """
    for file in (run / name for name in _READ):
        if file.is_symlink() and run.resolve() not in file.resolve().parents:
            raise RunError(f"{file} is a link that leads out of the folder: put the file itself there")


def _run_id(config: Mapping[str, Any], path: Path, taken: Collection[str]) -> str:
    """Names a run by agent and defences; one whose name is taken, by the first folder of its path that adds a name."""
    base = _slug("+".join((config["agent"], *config["defences"]))) or "agent"
    folders = (name for part in reversed(path.parts) if (name := _slug(part)) and name != base)
    names = [base, *(f"{base}-{folder}" for folder in islice(folders, 1))]
    # Names that differ in case alone are one folder on some file systems.
    known = {name.lower() for name in taken}
    return next(name for name in chain(names, (f"{names[-1]}-{i}" for i in count(2))) if name.lower() not in known)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60].rstrip("-.")


def _names(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str) and name]
