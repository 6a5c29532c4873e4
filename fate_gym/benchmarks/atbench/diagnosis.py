"""What ATBench and the other sets of judged trajectories share: rows of one file, to be judged safe or unsafe."""

from __future__ import annotations

import logging
import os
from typing import Final, Literal

from fate_gym.benchmark import Benchmark
from fate_gym.benchmark import World as BaseWorld
from fate_gym.benchmarks.atbench.answers import Diagnosis, write_answer
from fate_gym.benchmarks.atbench.records import Row, read_rows
from fate_gym.benchmarks.atbench.scoring import score
from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS
from fate_gym.benchmarks.atbench.views import FullView, PagedView, TrajectoryWorld
from fate_gym.chat import Json
from fate_gym.datafiles import DataFiles, read_data
from fate_gym.rewards import AxisVerdict
from fate_gym.task import Demonstration, GroundTruth, Task
from fate_gym.transcript import Transcript

View = Literal["full", "paged"]

_log = logging.getLogger("fate_gym")

_VIEWS: Final[dict[str, type[TrajectoryWorld]]] = {"full": FullView, "paged": PagedView}


class TrajectoryDiagnosis(Benchmark):
    """Whole recorded trajectories, each with one gold diagnosis.

    Task ids are `PART/KEY`, the key being a hash of the trajectory as it is shown; tasks stand in the order of their
    keys. So neither an id nor its place tells anything of the label, in whatever order a file is, and both stay when
    a file is sorted anew. Twins to the letter get `-2` and so on.

    What gives the label away is in no observation: labels, reasons, ids, kinds of attack, and of tools their source and
    the clean text of an injected description.

    Args:
        data: The files of the benchmark.
        file: The one to read.
        part: What of the benchmark the file is; the suite of its tasks.
        view: "full" shows all in one message, to be answered by one message. "paged" reads the same out through tools,
            for trajectories that are longer than a context, and stands in results under a suite of its own.
        dimensions: Whether the rows have labels in ATBench's three dimensions.
        labels: Whether a diagnosis of unsafe needs its three labels.
        data_dir: A folder with the file, instead of the one in the variable of `data` or the hub's cache.

    Raises:
        ValueError: The view is unknown.
        DataError: The data is missing or not as it should be; the message names file, record and field.
    """

    only_computes = True

    def __init__(
        self,
        data: DataFiles,
        file: str,
        part: str,
        view: View,
        *,
        dimensions: bool,
        labels: bool,
        data_dir: str | os.PathLike[str] | None,
    ) -> None:
        one_of("view", view, tuple(_VIEWS))
        self._data = data
        self._part = part
        self._view = view
        self._labels = labels
        read = read_data(data, file, data_dir)
        self._sha256, self._verified = read.sha256, read.verified
        self._table = read_rows(read.path, read.content, dimensions=dimensions)
        self._rows = {f"{part}/{row.key}": row for row in self._table.rows}
        self.tasks = tuple(self._rows)
        masked = [f"{name} {count}" for name, count in self._table.masked.items() if count]
        if masked:
            _log.warning("%s: labels outside the taxonomy are left out of scores: %s", part, ", ".join(masked))

    def task(self, task_id: str) -> Task:
        """Describes a task; `metadata` holds the form of the answer."""
        suite = self._part if self._view == "full" else f"{self._part} (paged)"
        metadata: dict[str, Json] = {"view": self._view, "labels": self._labels}
        return Task(id=task_id, mode="diagnosis", suite=suite, cluster=task_id, metadata=metadata)

    def ground_truth(self, task_id: str) -> GroundTruth:
        """Returns the gold diagnosis; where a gold label is missing, the first of its dimension."""
        row = self._rows[task_id]
        labels = _gold(row) if self._labels else {}
        if self._view == "full":
            return GroundTruth(Demonstration((), write_answer(Diagnosis(row.unsafe, labels))))
        arguments: dict[str, Json] = {"safety": "unsafe" if row.unsafe else "safe", **labels}
        return GroundTruth(Demonstration((("submit_verdict", arguments),), ""))

    def open(self, task_id: str, seed: int) -> TrajectoryWorld:
        """Creates the world of a trajectory. It uses no random numbers, so the seed changes nothing."""
        return _VIEWS[self._view](self._rows[task_id], labels=self._labels)

    def verify(self, task: Task, world: BaseWorld, transcript: Transcript) -> dict[str, AxisVerdict]:
        """Compares the diagnosis with the gold one (`scoring` says how)."""
        if not isinstance(world, TrajectoryWorld):
            raise TypeError(f"expected a TrajectoryWorld, got {type(world).__name__}")
        return score(world, transcript)

    def provenance(self) -> dict[str, Json]:
        """The file's checksum and whether it is the one on record, and what its rows are."""
        rows = self._table.rows
        return {
            self._data.name: self._part,
            "revision": self._data.revision if self._verified else None,
            "data_sha256": self._sha256,
            "rows": {"unsafe": sum(row.unsafe for row in rows), "safe": sum(not row.unsafe for row in rows)},
            "masked_labels": dict(self._table.masked),
            "replaced_risk_sources": self._table.replaced,
        }


def _gold(row: Row) -> dict[str, str]:
    return {name: label or DIMENSIONS[name][0] for name, label in row.gold.items()}


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError where an option has a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
