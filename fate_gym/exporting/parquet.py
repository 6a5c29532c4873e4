"""A table for dataframes: one row an episode, in Parquet. It holds no texts of tasks or models.

An axis that is not active is null, so that a mean over a column is a mean over what counts. The columns `usage.NAME`
are null where a run did not report them. The run's settings stand as JSON in the metadata of the table, under
`fate_gym`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fate_gym.chat import Json
from fate_gym.episode import LEFT_OUT, USAGE, Episode
from fate_gym.errors import UsageError
from fate_gym.evaluation.keys import Keys
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import Exported
from fate_gym.storage import replacing
from fate_gym.transcript import WRONG_CALLS


def export(run: RunFolder, out: Path) -> Exported:
    """Writes the file `out`: the scored episodes, and the last attempt of each that errored.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("Parquet needs one more package: pip install pyarrow") from error
    schema = pa.schema(
        [
            *((name, pa.string()) for name in _TEXTS),
            *((name, pa.float64()) for name in (*_NUMBERS, *_USAGE)),
            *((name, pa.int64()) for name in _COUNTS),
            *((name, pa.bool_()) for name in _FLAGS),
        ],
        metadata={"fate_gym": json.dumps(run.manifest)},
    )
    written = Exported(out)
    rows = _rows(run)
    with replacing(out) as file, pq.ParquetWriter(file, schema) as table:
        parts = iter(lambda: list(islice(rows, _ROWS)), [])
        batches = (pa.RecordBatch.from_pylist(part, schema=schema) for part in parts)
        while group := list(islice(batches, _GROUP // _ROWS)):
            # As one piece of memory, so that the file does not depend on how many rows were dicts at a time.
            columns = pa.Table.from_batches(group).combine_chunks()
            table.write_table(columns)
            written.episodes += len(columns)
    return written


_GROUP = 50_000
"""Rows that stand together in the file."""

_ROWS = 5_000
"""Rows that are dicts at a time, which take ten times what they take as columns."""

_TEXTS = ("key", "env", "agent", "task_id", "suite", "cluster", "mode", "attack", "status", "error", "ended")
_NUMBERS = ("security", "utility", "over_refusal_control", "validity", "seconds", "agent_seconds")
_USAGE = tuple(f"usage.{name}" for name in (*USAGE, LEFT_OUT))
_COUNTS = ("repeat", "seed", "turns", "calls", "wrong_calls", "attempts")
_FLAGS = ("truncated", "injection_reached", "content_filtered")


def _rows(run: RunFolder) -> Iterator[dict[str, Any]]:
    config = run.manifest["config"]
    scored = Keys()
    for episode in run.episodes():
        scored.add(episode.key)
        yield _row(episode, config)
    # Of each failure its last attempt.
    yield from {episode.key: _row(episode, config) for episode in run.failures() if episode.key not in scored}.values()


def _row(episode: Episode, config: Mapping[str, Any]) -> dict[str, Json]:
    names = (*_TEXTS, *_COUNTS, *_FLAGS)
    return {
        **{name: getattr(episode, name) for name in names if hasattr(episode, name)},
        **{name: axis.value if axis.active else None for name, axis in episode.verdict.axes.items()},
        "env": config["env"],
        "agent": config["agent"],
        "turns": len(episode.actions),
        "calls": len(episode.calls),
        "wrong_calls": sum(call.outcome in WRONG_CALLS for call in episode.calls),
        "seconds": episode.seconds["total"],
        "agent_seconds": episode.seconds["agent"],
        **{f"usage.{name}": value for name, value in episode.usage.items()},
    }
