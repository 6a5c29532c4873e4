"""A run: what an evaluation returns, what `load_run` reads back, and what boards and pages are made of."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError, RunError, UsageError
from fate_gym.evaluation.config import check_types
from fate_gym.evaluation.intervals import Estimate
from fate_gym.evaluation.recorded import Origin
from fate_gym.evaluation.store import EPISODES, FAILURES, OnProblem, RunFolder
from fate_gym.evaluation.summary import ALL, summarise
from fate_gym.rendering import EpisodeView
from fate_gym.storage import Fields, lines, open_file, parse, read_object

if TYPE_CHECKING:
    import pandas as pd


class _Place(NamedTuple):
    key: str
    line: int
    start: int


class Episodes(Sequence[Episode]):
    """Episodes of a run, in the order of their keys ("user_task_2" before "user_task_10").

    An episode is read from the disk when it is asked for: those of a large run would not fit into memory. Files of a
    run only grow, so this stays valid while the run goes on.

    Args:
        path: The file.
        numbers: Key of each episode -> number of its line, from 1.
    """

    def __init__(self, path: Path, numbers: Mapping[str, int]) -> None:
        starts = [0, *accumulate(len(line) for _, line in lines(path))] if numbers else []
        self._path = path
        self._places = [_Place(key, numbers[key], starts[numbers[key] - 1]) for key in sorted(numbers, key=_in_order)]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, in order."""
        return tuple(place.key for place in self._places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return list(self._read(self._places[index]))
        return next(self._read([self._places[index]]))

    def __iter__(self) -> Iterator[Episode]:
        return self._read(self._places)

    def __repr__(self) -> str:
        return f"<{len(self)} episodes of {self._path}>"

    def _read(self, places: Iterable[_Place]) -> Iterator[Episode]:
        # Opened for each use alone, so that nobody has to close a run.
        if not self._places:
            return
        with open_file(self._path) as file:
            for place in places:
                file.seek(place.start)
                yield Episode.from_json(parse(file.readline()), f"{self._path}, line {place.line}")


@dataclass(frozen=True, repr=False)
class Run:
    """One agent's episodes of one environment, and what they add up to.

    Attributes:
        path: The run folder.
        manifest: The settings, versions and checksums, as stored.
        summary: Every number of the run, computed from its episodes. `episodes` in it counts them; `planned` and
            `missing` there are None where nobody knows how many there should be.
        episodes: The scored episodes.
        failures: The episodes that ended in an error and were never scored, each as its last attempt left it.
        exhausted: Why the evaluation that returned this run began no further episode (the agent's daily quota is
            spent); None where there was no such reason, and of a run that was read.
    """

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    episodes: Episodes = field(compare=False)
    failures: Episodes = field(compare=False)
    exhausted: str | None = field(default=None, compare=False, kw_only=True)

    @property
    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """The metrics over all suites: by attack, or by mode ("benign", "harmful", ...) without one; then by name.

        So `run.metrics["important_instructions"]["ASR"].value` is a share in [0, 1], or None if no episode is behind
        it; `low` and `high` are the bounds of its 95 % interval, and `n` is its number of episodes.
        """
        return {
            _label(group): {name: Estimate(**estimate) for name, estimate in group["metrics"].items()}
            for group in self.summary["groups"]
            if group["suite"] == ALL
        }

    @property
    def origin(self) -> Origin | None:
        """What the run was imported from; None for one that was made here."""
        return Origin.read(self.manifest, str(self.path / "manifest.json"))

    def episode(self, which: int | str) -> Episode:
        """Returns one episode.

        Args:
            which: An index into `episodes`; or the key of an episode or of a failure, or a part of the key that no
                other has, such as "user_task_3/injection_task_5".

        Raises:
            IndexError: There are not so many episodes.
            UsageError: No key is meant, or more than one.
        """
        if isinstance(which, int):
            return self.episodes[which]
        keys = [*self.episodes.keys, *self.failures.keys]
        found = [key for key in keys if which in key]
        for matches in ([which], [key for key in found if key.endswith((which, f"{which}#0"))], found):
            if len(matches) == 1 and matches[0] in found:
                index = keys.index(matches[0])
                failed = index - len(self.episodes)
                return self.episodes[index] if failed < 0 else self.failures[failed]
        if not found:
            raise UsageError(
                f"{self.path} holds no episode whose key contains {which!r}; `fate-gym show RUN --all` lists them"
            )
        some = ", ".join(found[:5])
        raise UsageError(f"{len(found)} episodes of {self.path} have {which!r} in their key: {some}, ...")

    def show(self, which: int | str = 0) -> None:
        """Shows one episode: below the cell of a notebook, or printed as text.

        Args:
            which: As in `episode`.
        """
        from fate_gym.notebook import show

        show(EpisodeView.of(self.episode(which)))

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a pandas table with a row for each episode, scored ones in the order of `episodes`, then failures.

        Columns are the episode's identity (`key`, `task_id`, `suite`, `mode`, `attack`, ...), how it ended, the four
        axes, the measures of an axis as "AXIS.MEASURE", counts, seconds and usage. An axis that is not active is NaN,
        never 1.0, so that means leave it out; what is unknown is NaN too. `attack` is "none" where there is none.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise UsageError(f"to_dataframe needs {error.name}: pip install pandas") from error
        return pd.DataFrame([_row(episode) for part in (self.episodes, self.failures) for episode in part])

    def __repr__(self) -> str:
        counts = self.summary["episodes"]
        planned = "" if counts["planned"] is None else f" of {counts['planned']}"
        return (
            f"<Run of {self.summary['agent']} on {self.summary['env']}: {counts['scored']}{planned} episodes scored, "
            f"{counts['errors']} errors, in {self.path}>"
        )


def load_run(
    path: str | os.PathLike[str], *, planned: Sequence[str] | None = None, on_problem: OnProblem | None = None
) -> Run:
    """Reads a run folder, also while it is written. Every number is computed anew from the episodes.

    Args:
        path: The run folder.
        planned: Keys of all episodes that the run should have. None to take their number from the stored summary.
        on_problem: Called with the error of each record that is not an episode, which is then left out. None to raise
            the error.

    Raises:
        RunError: The folder is not a run, is one of a newer layout, or is damaged.
    """
    folder = RunFolder.read(Path(path))
    _check_manifest(folder)
    scored: dict[str, int] = {}
    failed: dict[str, int] = {}
    summary: dict[str, Any] = summarise(
        _numbering(folder.numbered(EPISODES, on_problem), scored),
        _numbering(folder.numbered(FAILURES, on_problem), failed),
        folder.manifest,
        planned or (),
    )
    if planned is None:
        _count_missing(summary["episodes"], folder.path)
    failed = {key: line for key, line in failed.items() if key not in scored}
    return Run(
        path=folder.path,
        manifest=folder.manifest,
        summary=summary,
        episodes=Episodes(folder.path / EPISODES, scored),
        failures=Episodes(folder.path / FAILURES, failed),
    )


def _check_manifest(folder: RunFolder) -> None:
    """Checks that a manifest says what ran; it may be a stranger's.

    Raises:
        RunCorruptError: It does not; the message names the field.
    """
    fields = Fields(folder.manifest, str(folder.path / "manifest.json"))
    config = fields.object("config").values
    for name in ("agent", "env", "defences", "env_args"):
        if name not in config:
            raise fields.problem(f"config.{name}", "is missing")
    try:
        check_types(config)
    except ValueError as error:
        raise RunCorruptError(f"{fields.where}: config.{error}") from error
    Origin.read(folder.manifest, str(folder.path / "manifest.json"))


def _numbering(numbered: Iterable[tuple[int, Episode]], lines: dict[str, int]) -> Iterator[Episode]:
    """Yields the episodes, and notes the last line of each key on the way."""
    for line, episode in numbered:
        lines[episode.key] = line
        yield episode


def _count_missing(counts: dict[str, Any], path: Path) -> None:
    """Takes from the stored summary how many episodes were planned: the run knew, a reader need not make the plan."""
    try:
        planned = read_object(path / "summary.json").object("episodes").integer("planned")
    except RunError:
        counts["planned"] = counts["missing"] = None
    else:
        counts["planned"] = planned
        counts["missing"] = max(0, planned - counts["scored"] - counts["errors"])


def _in_order(key: str) -> list[tuple[str, int]]:
    """Sorts numbers in a text by their value."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]{0,18})", key)]


def _label(group: Mapping[str, Any]) -> str:
    mode, attack = group["mode"], group["attack"]
    return mode if attack is None else attack if mode == "attacked" else f"{mode}/{attack}"


def _row(episode: Episode) -> dict[str, Any]:
    axes = episode.verdict.axes
    row = {
        "key": episode.key,
        "task_id": episode.task_id,
        "suite": episode.suite,
        "mode": episode.mode,
        # Not None: grouping by it would drop the episodes without attack.
        "attack": episode.attack or "none",
        "cluster": episode.cluster,
        "repeat": episode.repeat,
        "seed": episode.seed,
        "status": episode.status,
        "error": episode.error,
        "ended": episode.ended,
        "truncated": episode.truncated,
        "content_filtered": episode.content_filtered,
        "injection_reached": episode.injection_reached,
        **{name: axis.value if axis.active else math.nan for name, axis in axes.items()},
        **{f"{name}.{measure}": value for name, axis in axes.items() for measure, value in axis.measures.items()},
        "turns": len(episode.actions),
        "calls": len(episode.calls),
        "attempts": episode.attempts,
        "seconds": episode.seconds["total"],
        "agent_seconds": episode.seconds["agent"],
    }
    return {**row, **{name: value for name, value in episode.usage.items() if name not in row}}
