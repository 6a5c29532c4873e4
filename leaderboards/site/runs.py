"""A run's page, and the pages of its episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from fate_gym.leaderboards.board import Row
from fate_gym.leaderboards.columns import Column
from fate_gym.leaderboards.groups import without_paths
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.site.charts import BAR_WIDTH, bars
from fate_gym.leaderboards.site.episodes import (
    BINS,
    CLASSES,
    MOST_FAILURES,
    SAMPLE,
    Census,
    Listed,
    confidential,
    survey,
)
from fate_gym.leaderboards.site.tables import depends_on_refusals
from fate_gym.leaderboards.site.text import Budget, short, write_page
from fate_gym.leaderboards.site.traces import trace
from fate_gym.leaderboards.site.training import curves
from fate_gym.rewards import AXES

_LIST: Final = 700_000
_ROW: Final = 330
"""Bytes of the list of episodes, and of one row of it without names."""

_MOST_ROWS: Final = 100
"""Rows of the run's table, and likewise groups of its failures; the rest is counted."""


def write_run(
    run: LoadedRun,
    columns: Sequence[Column],
    rows: Sequence[Row],
    board: tuple[str, str] | None,
    folder: Path,
    common: Mapping[str, object],
) -> None:
    """Writes a run's page and those of its episodes.

    Args:
        run: The run.
        columns: Of its board.
        rows: Its rows.
        board: Name and address of its board, the address from the site's top.
        folder: Where the pages go; made if missing.
        common: What every page reads; `private` among it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    census = survey(chain(run.episodes, run.failures))
    present = {column.name for row in rows for column in columns if column.name in row.metrics}
    values = {
        **common,
        "run": run,
        "board": board,
        "name": run.summary["agent"],
        "env": run.summary["env"],
        "settings": _settings(run),
        "columns": [column for column in columns if column.name in present],
        "rows": rows[:_MOST_ROWS],
        "rows_left_out": max(0, len(rows) - _MOST_ROWS),
        "census": census,
        "classes": [(name, meaning, census.classes[name]) for name, meaning in CLASSES.items()],
        "groups": sorted(census.by_group.items(), key=lambda group: str(group[0]))[:_MOST_ROWS],
        "axes": [(name, bars(census.bins[name], BINS), census.inactive[name]) for name in AXES],
        "bar_width": BAR_WIDTH,
        "bounds": (MOST_FAILURES, SAMPLE),
        "entries": _fitting(census.listed),
        "depends_on_refusals": depends_on_refusals,
        "curves": curves(run.path),
    }
    write_page(folder / "index.html", "run", "../../", values)
    _write_traces(run, census, board, folder, common)


def _fitting(entries: Sequence[Listed]) -> list[Listed]:
    """Returns the first entries, as many as a list has room for; arrows lead from their pages to those of the rest."""
    budget = Budget(_LIST)
    fitting = []
    for entry in entries:
        # What a row takes beside its names, as so many digits.
        texts = ("0" * _ROW, short(entry.task_id, 80), short(entry.attack or "", 40))
        if any(budget.take(text).left_out for text in texts):
            break
        fitting.append(entry)
    return fitting


def _write_traces(
    run: LoadedRun,
    census: Census,
    board: tuple[str, str] | None,
    folder: Path,
    common: Mapping[str, object],
) -> None:
    listed = census.listed
    places = {entry.key: i for i, entry in enumerate(listed)}
    shared = {**common, "run": run, "board": board, "name": run.summary["agent"], "meanings": CLASSES}
    for episode in chain(run.episodes, run.failures):
        i = places.get(episode.key)
        if i is None:
            continue
        hidden = not common["private"] and confidential(episode, run.summary["env"])
        values = shared | {
            "episode": episode,
            "entry": listed[i],
            "place": i + 1,
            "of": len(listed),
            "hidden": hidden,
            "trace": None if hidden else trace(episode),
            # Failures stand first, so that this goes from failure to failure.
            "previous": listed[i - 1] if i else None,
            "next": listed[i + 1] if i + 1 < len(listed) else None,
        }
        write_page(folder / listed[i].page, "trace", "../../", values)


def _settings(run: LoadedRun) -> list[tuple[str, str]]:
    """What was run, as (name, value); long values are cut."""
    config = {name: value for name, value in run.manifest["config"].items() if value not in (None, [], {}, "")}
    # Where things lay says nothing, and names somebody's home.
    config.pop("out", None)
    config["env_args"] = without_paths(run.manifest["config"])
    versions = run.manifest.get("versions")
    entries: dict[str, object] = {**config}
    if isinstance(versions, Mapping):
        entries["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    if run.submission:
        said = run.submission
        entries |= {"submitted by": said.who, "model, as submitted": said.model, "date": said.date, "notes": said.notes}
    entries |= {"seen in training": list(run.contaminated_by), "provenance": run.manifest.get("provenance")}
    entries["digest"] = run.manifest["digest"]
    budget = Budget(60_000)
    return [(short(name, 60), budget.take(_words(value), 3_000).text) for name, value in entries.items() if value]


def _words(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, str | None) for entry in value):
        return ", ".join("none" if entry is None else entry for entry in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
