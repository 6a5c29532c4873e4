"""A run: what an evaluation returns, what `load_run` reads back, and what boards and pages are made of."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError, RunError, UsageError
from fate_gym.evaluation.config import check_types
from fate_gym.evaluation.intervals import Estimate
from fate_gym.evaluation.keys import Indices, Keys, Places
from fate_gym.evaluation.recorded import Origin
from fate_gym.evaluation.results import Result, Results
from fate_gym.evaluation.store import EPISODES, FAILURES, OnProblem, RunFolder
from fate_gym.evaluation.summary import ALL
from fate_gym.rendering import EpisodeView
from fate_gym.storage import Fields, Place, open_file, parse, read_object

if TYPE_CHECKING:
    import pandas as pd


class Episodes(Sequence[Episode]):
    """Episodes of a run, in the order of their tasks ("user_task_2" before "user_task_10") and repeats.

    An episode is read from the disk when it is asked for: those of a large run would not fit into memory. Files of a
    run only grow, so this stays valid while the run goes on.

    Args:
        path: The file.
        places: Where they stand in it.
        results: What each of them came to.
        without: Keys of episodes to leave out.
    """

    def __init__(self, path: Path, places: Places, results: Results, without: Keys | None = None) -> None:
        self._path, self._places, self._results = path, places, results
        order = places.keys.in_order()
        if without:
            kept = [key not in without for key in places.keys.at(order.tolist())]
            order = order[np.array(kept, dtype=bool)]
        self._order = order

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, in order."""
        return tuple(self.each_key())

    def each_key(self) -> Iterator[str]:
        """Yields the keys, in order; those of a large run are many."""
        return self._places.keys.at(self._order.tolist())

    @property
    def results(self) -> Sequence[Result]:
        """The different results that there are; nothing is read for them."""
        return self._results.different

    @property
    def each_result(self) -> Indices:
        """For each episode, in order, the index of its result in `results`, (n,)."""
        return self._results.each[self._order]

    def where(self, chosen: NDArray[np.bool_]) -> Episodes:
        """Returns those for which `chosen`, (n,), is true."""
        some = copy.copy(self)
        some._order = self._order[chosen]
        return some

    def paired_results(self, other: Episodes) -> tuple[Indices, Indices]:
        """Returns the results of the episodes whose keys both have, in pairs, as indices into either's `results`."""
        mine, theirs = self._places.keys.shared(other._places.keys)
        both = np.isin(mine, self._order) & np.isin(theirs, other._order)
        return self._results.each[mine[both]], other._results.each[theirs[both]]

    def of(self, key: str) -> Episode:
        """Returns the episode of a key; raises `KeyError` if it is not among these."""
        return next(self.of_each([key]))

    def of_each(self, keys: Iterable[str]) -> Iterator[Episode]:
        """Yields the episodes of some keys, in their order; raises `KeyError` before the first if one is missing."""
        keys = list(keys)
        indices = self._places.keys.indices(keys)
        held = np.isin(indices, self._order)
        if not held.all():
            raise KeyError(keys[int(np.argmin(held))])
        return self._read(indices)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return list(self._read(self._order[index].tolist()))
        return next(self._read([int(self._order[index])]))

    def __iter__(self) -> Iterator[Episode]:
        return self._read(self._order.tolist())

    def __repr__(self) -> str:
        return f"<{len(self)} episodes of {self._path}>"

    def _read(self, indices: Iterable[int]) -> Iterator[Episode]:
        # Opened for each use alone, so that nobody has to close a run.
        if not len(self):
            return
        with open_file(self._path) as file:
            for index in indices:
                line, start = self._places[index]
                file.seek(start)
                yield Episode.from_json(parse(file.readline()), f"{self._path}, line {line}")


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
            spent, or its server gone); None where there was no such reason, and of a run that was read.
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
        found = [key for part in (self.episodes, self.failures) for key in part.each_key() if which in key]
        for matches in ([which], [key for key in found if key.endswith((which, f"{which}#0"))], found):
            if len(matches) == 1 and matches[0] in found:
                with contextlib.suppress(KeyError):
                    return self.episodes.of(matches[0])
                return self.failures.of(matches[0])
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
        rows = (_row(episode) for part in (self.episodes, self.failures) for episode in part)
        # A dict for each episode takes ten times what its row of the table does, so that there are never many of them.
        parts = [pd.DataFrame(group) for group in iter(lambda: list(islice(rows, _ROWS)), [])]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame([])

    def __repr__(self) -> str:
        counts = self.summary["episodes"]
        planned = "" if counts["planned"] is None else f" of {counts['planned']}"
        return (
            f"<Run of {self.summary['agent']} on {self.summary['env']}: {counts['scored']}{planned} episodes scored, "
            f"{counts['errors']} errors, in {self.path}>"
        )


def load_run(
    path: str | os.PathLike[str], *, planned: Iterable[str] | None = None, on_problem: OnProblem | None = None
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
    return run_of(RunFolder(Path(path)), planned=planned, on_problem=on_problem)


def run_of(folder: RunFolder, *, planned: Iterable[str] | None = None, on_problem: OnProblem | None = None) -> Run:
    """Makes a run of its folder, of which only what has been added is read; see `load_run`."""
    _check_manifest(folder)
    scored, failed, results = folder.scored(on_problem), Places(), Results()
    failures = _noting(folder.placed(FAILURES, on_problem), failed, results)
    summary: dict[str, Any] = scored.tally.summary(scored.counted, failures, folder.manifest, planned or ())
    if planned is None:
        _count_missing(summary["episodes"], folder.path)
    return Run(
        path=folder.path,
        manifest=folder.manifest,
        summary=summary,
        episodes=Episodes(folder.path / EPISODES, scored.places, scored.tally.results),
        failures=Episodes(folder.path / FAILURES, failed, results, scored.counted if len(failed.keys) else None),
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


def _noting(placed: Iterable[tuple[Place, Episode]], places: Places, results: Results) -> Iterator[Episode]:
    """Yields the episodes, and notes on the way where they stand and what they came to."""
    for place, episode in placed:
        places.note(episode.key, place)
        results.add(Result.of(episode))
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


_ROWS: Final = 20_000
"""Rows of a table that are dicts at a time."""


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
