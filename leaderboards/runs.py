"""Run folders, read for a leaderboard: every number computed anew from the episodes, which are never all in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.evaluation.config import check_types
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.summary import summarise
from fate_gym.leaderboards.submissions import Submission, read_submission
from fate_gym.storage import Fields, read_object


@dataclass(frozen=True)
class LoadedRun:
    """A run, ready for tables and pages.

    Attributes:
        run_id: Names it in addresses: letters, digits, "-" and "." only, unique among the runs loaded together.
        folder: The run folder, open for reading.
        manifest: As stored.
        summary: Computed from the episodes; `episodes.planned` and `.missing` are None where the run never ended.
        malformed: Number of records that are not of an episode's shape; they are in no number and on no page.
        submission: What `submission.yaml` says; None without one.
        contaminated_by: What the model has seen of the benchmark, as far as the folder says.
    """

    run_id: str
    folder: RunFolder = field(repr=False)
    manifest: dict[str, Any]
    summary: dict[str, Any]
    malformed: int
    submission: Submission | None
    contaminated_by: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder's path."""
        return self.folder.path

    def episodes(self) -> Iterator[Episode]:
        """Yields the scored episodes, one at a time, in the order in which they ended."""
        return self.folder.episodes(pass_over)


def pass_over(problem: RunError) -> None:
    """Passes over a record that is not an episode's: `LoadedRun.malformed` has counted it."""


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
    *("manifest.json", "episodes.jsonl", "failures.jsonl", "summary.json"),
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


def load_run(path: Path) -> LoadedRun:
    """Loads one run folder.

    Raises:
        RunError: The folder is not a run, is damaged, or its `submission.yaml` is.
    """
    return load_runs([path])[0]


def _load(path: Path, taken: set[str]) -> LoadedRun:
    refuse_links(path)
    folder = RunFolder.read(path)
    _check_manifest(path, folder.manifest)
    malformed = 0
    marks = set(_names(folder.manifest.get("contaminated_by")))

    def leave_out(problem: RunError) -> None:
        nonlocal malformed
        malformed += 1

    summary = summarise(folder.episodes(leave_out), folder.failures(leave_out), folder.manifest, ())
    _count_missing(summary, folder)
    submission = read_submission(path)
    if submission:
        marks.update(submission.contaminated_by)
    return LoadedRun(
        run_id=_run_id(str(summary["agent"]), folder.manifest["digest"], taken),
        folder=folder,
        manifest=folder.manifest,
        summary=summary,
        malformed=malformed,
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


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Checks that a manifest says what ran.

    Raises:
        RunCorruptError: It does not; the message names the field.
    """
    fields = Fields(manifest, str(path / "manifest.json"))
    fields.text("digest")
    config = fields.object("config")
    for name in ("agent", "env", "defences", "env_args"):
        if name not in config.values:
            raise fields.problem(f"config.{name}", "is missing")
    try:
        check_types(config.values)
    except ValueError as error:
        raise RunCorruptError(f"{fields.where}: config.{error}") from error


def _count_missing(summary: dict[str, Any], folder: RunFolder) -> None:
    """Takes from the stored summary how many episodes were planned: the run knew, the table need not make the plan."""
    counts = summary["episodes"]
    try:
        planned = read_object(folder.path / "summary.json").object("episodes").integer("planned")
    except RunError:
        counts["planned"] = counts["missing"] = None
    else:
        counts["planned"] = planned
        counts["missing"] = max(0, planned - counts["scored"] - counts["errors"])


def _run_id(agent: str, digest: str, taken: set[str]) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", agent).strip("-.")[:60] or "agent"
    base = f"{slug}-{hashlib.sha256(f'{agent}/{digest}'.encode(errors='replace')).hexdigest()[:8]}"
    names = [base, *(f"{base}-{i}" for i in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _names(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str) and name]
