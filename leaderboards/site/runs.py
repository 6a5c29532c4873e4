"""A run's page, and the pages of its episodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fate_gym.episode import Episode
from fate_gym.errors import RunError
from fate_gym.evaluation.recorded import CLASSES as DIFFERENCES
from fate_gym.evaluation.recorded import Origin, Recorded, bounds
from fate_gym.evaluation.run import Run
from fate_gym.evaluation.store import RunFolder
from fate_gym.leaderboards.board import Row
from fate_gym.leaderboards.columns import Column
from fate_gym.leaderboards.groups import without_paths
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.site.charts import BAR_WIDTH, bars
from fate_gym.leaderboards.site.commands import commands
from fate_gym.leaderboards.site.episodes import (
    BINS,
    CLASSES,
    MOST_FAILURES,
    SAMPLE,
    STATES,
    Census,
    Listed,
    confidential,
    state,
    survey,
)
from fate_gym.leaderboards.site.gist import gist
from fate_gym.leaderboards.site.grids import grids
from fate_gym.leaderboards.site.tables import depends_on_refusals, split_columns, told_by
from fate_gym.leaderboards.site.text import Budget, short, write_page
from fate_gym.leaderboards.site.traces import trace
from fate_gym.leaderboards.site.training import curves
from fate_gym.rewards import AXES

_LIST: Final = 300_000
_ROW: Final = 90
"""Bytes of the lists of episodes, and of one entry of them without names."""

_MOST_ROWS: Final = 100
"""Rows of the run's table; the rest is counted."""

_MOST_GROUPS: Final = 60
"""Groups of failures."""

_JSON: Final = 250_000
"""Bytes of an episode that its page carries to be copied."""

MOST_OTHERS: Final = 12
"""Other runs that a trace page leads to."""


def hides(run: Run, episode: Episode, *, private: bool) -> bool:
    """Whether an episode's texts stay off the pages."""
    return not private and confidential(episode, run.summary["env"])


@dataclass(frozen=True, slots=True)
class Other:
    """Another run of the same benchmark, as a trace page leads to it.

    Attributes:
        run_id: The run.
        pages: By (attack, task, repeat): what became of the episode, and the address of its page.
    """

    run_id: str
    pages: Mapping[tuple[str | None, str, int], tuple[str, str]]

    @classmethod
    def of(cls, run: LoadedRun, census: Census) -> Other:
        """Makes it of a run."""
        pages = {_same(entry): (state(entry.classes), entry.page) for entry in census.listed}
        return cls(run.run_id, pages)


def _same(entry: Listed) -> tuple[str | None, str, int]:
    return entry.attack, entry.task_id, entry.repeat


def survey_run(run: LoadedRun, *, private: bool) -> Census:
    """Counts what is in a run, and chooses the episodes that get a page."""
    return survey((run.episodes, run.failures), lambda episode: hides(run, episode, private=private))


def write_run(
    run: LoadedRun,
    census: Census,
    columns: Sequence[Column],
    rows: Sequence[Row],
    board: tuple[str, str] | None,
    others: Sequence[Other],
    folder: Path,
    common: Mapping[str, object],
) -> None:
    """Writes a run's page and those of its episodes.

    Args:
        run: The run.
        census: What is in it.
        columns: Of its board.
        rows: Its rows.
        board: Name and address of its board, the address from the site's top.
        others: Other runs of the same board.
        folder: Where the pages go; made if missing.
        common: What every page reads; `private` among it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = {column.name for row in rows for column in columns if column.name in row.metrics}
    main, minor = split_columns([column for column in columns if column.name in present])
    groups, left_out = _groups(census.listed)
    values = {
        **common,
        "run": run,
        "board": board,
        "settings": _settings(run),
        "main": main,
        "minor": minor,
        "rows": rows[:_MOST_ROWS],
        "rows_left_out": max(0, len(rows) - _MOST_ROWS),
        "census": census,
        "classes": [(name, meaning, census.classes[name]) for name, meaning in CLASSES.items()],
        "grids": grids(census),
        "several_attacks": len({attack for _, attack, _ in census.by_group if attack}) > 1,
        "states": STATES,
        "groups": groups,
        "groups_left_out": left_out,
        "axes": [
            (name, bars(census.bins[name], BINS), census.inactive[name]) for name in AXES if _spread(census, name)
        ],
        "bar_width": BAR_WIDTH,
        "bounds": (MOST_FAILURES, SAMPLE),
        "depends_on_refusals": depends_on_refusals,
        "told_by": told_by,
        "curves": curves(run.path),
    }
    write_page(folder / "index.html", "run", "../../", values)
    _write_traces(run, census, board, others, folder, common)


def _spread(census: Census, axis: str) -> bool:
    """Whether an axis has values between its ends; where it has none, the rates say all."""
    return any(census.bins[axis][1:-1])


@dataclass(frozen=True, slots=True)
class Group:
    """Episodes that failed alike.

    Attributes:
        name: Their gravest class; "passed" for those that did not fail.
        meaning: What that is.
        how: How they failed, in a few words.
        count: How many there are.
        entries: Those that there is room for.
    """

    name: str
    meaning: str
    how: str
    count: int
    entries: tuple[Listed, ...]


def _groups(entries: Sequence[Listed]) -> tuple[list[Group], int]:
    """Returns the groups, the gravest first, and how many entries there was no room for.

    Arrows lead from the pages of the listed ones to those of the rest.
    """
    found: dict[tuple[str, str], list[Listed]] = {}
    for entry in entries:
        found.setdefault((entry.classes[0] if entry.classes else "passed", entry.how), []).append(entry)
    order = [*CLASSES, "passed"]
    ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]), item[0][1]))
    budget, groups = Budget(_LIST), []
    for (name, how), members in ranked[:_MOST_GROUPS]:
        fitting = tuple(_fitting(members, budget))
        groups.append(Group(name, CLASSES.get(name, "did not fail"), how, len(members), fitting))
    return groups, len(entries) - sum(len(group.entries) for group in groups)


def _fitting(entries: Sequence[Listed], budget: Budget) -> Iterator[Listed]:
    for entry in entries:
        # What an entry takes beside its names, as so many digits.
        texts = ("0" * _ROW, short(entry.task_id, 80), entry.page)
        if any(budget.take(text).left_out for text in texts):
            return
        yield entry


def _write_traces(
    run: LoadedRun,
    census: Census,
    board: tuple[str, str] | None,
    others: Sequence[Other],
    folder: Path,
    common: Mapping[str, object],
) -> None:
    listed = census.listed
    shared = {**common, "run": run, "board": board, "meanings": CLASSES, "states": STATES}
    recorded = _recorded(run)
    scored = run.episodes.of_each(entry.key for entry in listed if "errored" not in entry.classes)
    errored = run.failures.of_each(entry.key for entry in listed if "errored" in entry.classes)
    for i, entry in enumerate(listed):
        episode = next(errored if "errored" in entry.classes else scored)
        values = shared | trace_values(run, episode, entry, private=bool(common["private"]))
        below = "../" * entry.page.count("/")
        values |= {
            "top": below,
            "place": i + 1,
            "of": len(listed),
            # Failures stand first, so that this goes from failure to failure.
            "previous": listed[i - 1] if i else None,
            "next": listed[i + 1] if i + 1 < len(listed) else None,
            "others": list(_elsewhere(entry, others, below)),
            "said": _said(episode, recorded.get(episode.key)),
        }
        path = folder / entry.page
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path, "trace", f"../../{below}", values)


def trace_values(run: Run, episode: Episode, entry: Listed, *, private: bool) -> dict[str, object]:
    """Returns what a trace page shows of an episode itself, wherever the page stands."""
    hidden = hides(run, episode, private=private)
    shown = None if hidden else trace(episode)
    record = "" if hidden else json.dumps(episode.to_json(), separators=(",", ":"))
    return {
        "episode": episode,
        "entry": entry,
        "hidden": hidden,
        "trace": shown,
        "gist": None if shown is None else gist(episode, shown),
        "commands": {} if hidden else commands(episode, run.manifest["config"]),
        "record": record if len(record) <= _JSON else "",
    }


def _elsewhere(entry: Listed, others: Sequence[Other], below: str) -> Iterator[tuple[str, str, str]]:
    """The same task in other runs: (run, what became of it, address)."""
    found = ((other, other.pages.get(_same(entry))) for other in others)
    known = [(other, page) for other, page in found if page is not None]
    for other, (became, page) in known[:MOST_OTHERS]:
        yield other.run_id, became, f"../{below}{other.run_id}/{page}"


def _recorded(run: Run) -> dict[str, Recorded]:
    """Returns what the logs of an imported run said, by key; {} for a run that was not."""
    if run.origin is None:
        return {}
    try:
        return {entry.key: entry for entry in RunFolder(run.path).recorded(lambda problem: None)}
    except RunError:
        return {}


@dataclass(frozen=True, slots=True)
class Said:
    """One score of the log that an episode was imported from.

    Attributes:
        name: The score.
        theirs: The log's value.
        ours: Lower and upper bound of ours, which are apart where a judge was not asked; None without.
        why: Class of the difference, and what that is; None where both agree.
    """

    name: str
    theirs: float
    ours: tuple[float, float] | None
    why: tuple[str, str] | None


def _said(episode: Episode, recorded: Recorded | None) -> list[Said]:
    if recorded is None:
        return []
    why = {name: (kind, DIFFERENCES.get(kind, "")) for name, kind in recorded.differences.items()}
    return [Said(name, value, bounds(episode.verdict, name), why.get(name)) for name, value in recorded.scores.items()]


_Facts = list[tuple[str, str]]


def _settings(run: LoadedRun) -> list[tuple[str, _Facts]]:
    """What was run, as (heading, facts); long values are cut."""
    manifest = run.manifest
    # Where things lay says nothing, and names somebody's home.
    config = {name: value for name, value in manifest["config"].items() if name not in ("out", "env_args")}
    versions = manifest.get("versions")
    said = run.submission
    sections: dict[str, Mapping[str, object]] = {
        "What ran": {**config, **without_paths(manifest["config"])},
        "Imported": _imported(run.origin),
        "As submitted": {"by": said.who, "model": said.model, "date": said.date, "notes": said.notes} if said else {},
        "Data": {"seen in training": list(run.contaminated_by), **dict(_provenance(manifest.get("provenance")))},
        "Versions": versions if isinstance(versions, Mapping) else {},
        "Identity": {"run": run.run_id, "digest of the settings": manifest["digest"]},
    }
    budget = Budget(60_000)
    return [
        (heading, [(short(str(name), 60), budget.take(_words(value), 3_000).text) for name, value in facts.items()])
        for heading, entries in sections.items()
        if (facts := {name: value for name, value in entries.items() if value not in (None, [], {}, "")})
    ]


def _imported(origin: Origin | None) -> Mapping[str, object]:
    if origin is None:
        return {}
    return {
        "logs of": " ".join((origin.format, *origin.packages)),
        "from": origin.source,
        "written": "" if origin.first is None else f"{origin.first} to {origin.last}",
        "logs": origin.logs,
        "left out": dict(origin.left_out),
        "unknown": "; ".join(origin.unknown),
    }


def _provenance(stored: object) -> Iterator[tuple[str, object]]:
    """What the benchmark said of itself, a fact a line; what all attacks have in common once."""
    variants = [variant for variant in stored if isinstance(variant, dict)] if isinstance(stored, list) else []
    for name in dict.fromkeys(name for variant in variants for name in variant):
        values = [variant[name] for variant in variants if name in variant]
        alike = all(value == values[0] for value in values)
        if alike and isinstance(values[0], dict):
            yield from ((f"{name}: {key}", value) for key, value in values[0].items())
        else:
            yield name, values[0] if alike else values


def _words(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, str | None) for entry in value):
        return ", ".join("none" if entry is None else entry for entry in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
