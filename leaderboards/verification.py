"""`fate-gym leaderboard verify`: whether a run folder agrees with itself and with the benchmark.

What is checked: the files are whole and of known schemas; the settings give the digest that the manifest names;
versions and checksums are those of this installation; every episode of the task list is there once; every episode,
played again in a fresh environment, gives the same messages, calls and verdict; the summary follows from the episodes.
That is consistency, not authenticity: `CANNOT_KNOW` says what no folder can show.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fate_gym.episode import Episode
from fate_gym.errors import FateGymError, RunError
from fate_gym.evaluation.config import NOT_IN_DIGEST
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.store import SCHEMA as RUN_SCHEMA
from fate_gym.evaluation.store import config_digest
from fate_gym.evaluation.summary import SCHEMA as SUMMARY_SCHEMA
from fate_gym.evaluation.summary import summarise
from fate_gym.leaderboards import scanning
from fate_gym.leaderboards.replay import Change, changes, leaves, replay
from fate_gym.leaderboards.settings import Settings, read_settings
from fate_gym.leaderboards.submissions import FILE, read_submission
from fate_gym.storage import dump, parse

SCHEMA: Final = "fate-gym/verification/1"

CANNOT_KNOW: Final = (
    "which model wrote the actions: a name proves nothing",
    "tokens, cost, attempts and times: they are the submitter's own",
    "whether these traces are the first attempt or the best of many",
    "training on the benchmark that nobody declared",
    "whether an episode that a full context cut off was really cut off there",
)
"""What no look at a folder can find out."""

_MOST: Final = 5
"""Differences of one episode that are listed; a changed action changes all that follows it."""

_OURS: Final = ("fate-gym",)
"""Packages whose version decides scores; those of benchmarks stand in the provenance."""

Items = Mapping[str, Item]


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a report.

    Attributes:
        where: File and line, an episode's key, or a setting.
        what: What is wrong there.
    """

    where: str
    what: str


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        run: The folder.
        differences: What does not agree; none for an honest, complete run.
        notes: What a reader should know, and is no fault.
        replayed: Episodes that were played again.
        not_rescored: Axes that a judge scored and that were not judged again -> number of episodes.
    """

    run: Path
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replayed: int = 0
    not_rescored: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether everything that can be checked agrees."""
        return not self.differences

    def add(self, where: str, what: str) -> None:
        """Adds a difference."""
        self.differences.append(Difference(where, what))

    def add_changes(self, where: str, found: Iterable[Change], most: int | None = None) -> None:
        """Adds differing values, a line each; beyond `most` only their number."""
        listed = list(found)
        for name, stored, fresh in listed[:most]:
            self.add(where, f"{name}: stored {_brief(stored)}, recomputed {_brief(fresh)}")
        if most is not None and len(listed) > most:
            self.add(where, f"and {len(listed) - most} more values")

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "differences": [{"where": entry.where, "what": entry.what} for entry in self.differences],
            "notes": list(self.notes),
            "replayed": self.replayed,
            "not_rescored": dict(sorted(self.not_rescored.items())),
            "cannot_know": list(CANNOT_KNOW),
        }


def verify(path: Path, *, trusted: str | None = None, concurrency: int = 4) -> Verification:
    """Checks a run folder against itself and against the benchmark installed here.

    Args:
        path: The folder.
        trusted: Module that registers a third party's environment; imported. A folder's own word is not enough.
        concurrency: Episodes replayed at once.

    Raises:
        RunError: The folder is none of a run.
        UsageError: The environment is not registered here.
        FateGymError: The benchmark's data are not at hand.
    """
    if not (path / "manifest.json").is_file():
        raise RunError(f"{path} has no manifest.json: is it the folder of a run?")
    found = Verification(path)
    declared = _check_submission(path, found)
    manifest = _object(path / "manifest.json", RUN_SCHEMA, found)
    if manifest is None:
        return found
    try:
        settings = read_settings(manifest, trusted)
        plan = Plan(settings.config)
    except FateGymError:
        raise
    except Exception as error:
        # A stranger's settings may make a benchmark raise anything.
        found.add("manifest.json", f"no environment can be made from its settings: {error}")
        return found
    _check_manifest(manifest, plan, settings, found)
    planned = {item.key: item for item in plan.items}
    marks = _check_files(path, planned, found)
    marks.update(_texts(manifest.get("contaminated_by")))
    _check_marks(marks, declared, found)
    asyncio.run(_check_replays(path, plan, planned, settings, found, concurrency))
    _check_summary(path, manifest, planned, found)
    return found


def _check_submission(path: Path, found: Verification) -> set[str] | None:
    """Returns the contamination that `submission.yaml` declares; None without that file."""
    try:
        submission = read_submission(path)
    except RunError as error:
        found.add(FILE, str(error))
        return None
    if submission is None:
        found.notes.append(f"no {FILE}: this run is not yet a submission")
        return None
    return set(submission.contaminated_by)


def _object(path: Path, schema: str, found: Verification) -> dict[str, Any] | None:
    try:
        value = parse(path.read_bytes())
        # NaN is read, and no honest writer writes it.
        dump(value)
    except OSError:
        found.add(path.name, "is missing or cannot be read")
        return None
    except ValueError:
        found.add(path.name, "is not one JSON object on a line of its own: it was cut off or damaged")
        return None
    if value.get("schema") != schema:
        found.add(path.name, f"schema: stored {_brief(value.get('schema'))}, this fate-gym checks {schema}")
        return None
    return value


def _check_manifest(manifest: Mapping[str, Any], plan: Plan, settings: Settings, found: Verification) -> None:
    """Checks digest, versions, checksums and licence, and notes what was not the whole benchmark."""
    fresh = plan.manifest()
    stored = {"provenance": manifest.get("provenance"), **manifest["config"]}
    if manifest.get("digest") != config_digest(stored, NOT_IN_DIGEST):
        found.add("manifest.json", "digest: it is not that of the settings and versions, one of them was changed")
    provenance = leaves(manifest.get("provenance"), fresh["provenance"], "provenance")
    found.add_changes("manifest.json", (change for change in provenance if not _judged(change, settings)))
    versions = manifest.get("versions")
    for name, here, there in leaves(fresh["versions"], versions, ""):
        if name in _OURS or not name:
            found.add("manifest.json", f"versions.{name}: stored {_brief(there)}, here {_brief(here)}")
        else:
            found.notes.append(f"{name} was {_brief(there)}, here it is {_brief(here)}")
    found.add_changes("manifest.json", leaves(manifest.get("data_policy"), fresh["data_policy"], "data_policy"))
    config = settings.config
    if config.limit is not None or config.tasks is not None:
        found.notes.append(f"a part of the benchmark: limit {config.limit}, tasks {_brief(config.tasks)}")
    if config.env_args.get("split") is not None:
        found.notes.append(f"split: {_brief(config.env_args['split'])}")
    if settings.judges:
        found.notes.append(f"judges are not asked again: {', '.join(settings.judges)} left out")


def _judged(change: Change, settings: Settings) -> bool:
    return bool(settings.judges) and "judge" in change[0]


def _check_files(path: Path, planned: Items, found: Verification) -> set[str]:
    """Checks every line and that the task list is complete; returns the contamination marks of the records."""
    marks: set[str] = set()
    keys: set[str] = set()
    for episode in scanning.episodes(path, found.add):
        keys.add(episode["key"])
        marks.update(_texts(episode.get("contaminated_by")))
        item = planned.get(episode["key"])
        if item is None:
            found.add(episode["key"], "is not in the task list of these settings")
            continue
        place = {"task_id": item.task_id, "repeat": item.repeat, "seed": item.seed}
        found.add_changes(episode["key"], leaves({name: episode[name] for name in place}, place, ""))
    errors = {record["key"]: record["status"] for record in scanning.failures(path, found.add)}
    for key in planned:
        if key not in keys:
            error = f" (it errored: {errors[key]}; the same command tries it again)" if key in errors else ""
            found.add(key, f"is missing: the task list has it, and no episode does{error}")
    for key in sorted(set(errors) - set(planned)):
        found.add(key, "is in failures.jsonl and not in the task list of these settings")
    return marks


def _check_marks(marks: set[str], declared: set[str] | None, found: Verification) -> None:
    if declared is not None and marks - declared:
        found.add(FILE, f"contaminated_by does not declare what the run is marked with: {', '.join(sorted(marks))}")
    if every := sorted(marks | (declared or set())):
        found.notes.append(f"trained on {', '.join(every)}: the board says so, and no front has this run")


async def _check_replays(
    path: Path, plan: Plan, planned: Items, settings: Settings, found: Verification, concurrency: int
) -> None:
    def compare(episode: Mapping[str, Any], fresh: dict[str, Any]) -> None:
        found.replayed += 1
        if fresh["status"] != "ok":
            lines.append((episode["key"], [("replay", "ok", f"{fresh['status']}: {fresh['error']}")]))
            return
        kept = dict(episode["verdict"])
        for axis, verdict in fresh["verdict"].items():
            if settings.judges and kept[axis]["rule"] != verdict["rule"]:
                found.not_rescored[axis] += 1
                kept[axis] = verdict
        lines.append((episode["key"], list(changes({**episode, "verdict": kept}, fresh))))

    lines: list[tuple[str, list[Change]]] = []
    known = ((planned[episode["key"]], episode) for episode in scanning.episodes(path) if episode["key"] in planned)
    await replay(plan, known, compare, concurrency=concurrency)
    # Episodes end in no order; the report has one.
    for key, differing in sorted(lines):
        found.add_changes(key, differing, _MOST)


def _check_summary(path: Path, manifest: Mapping[str, Any], planned: Items, found: Verification) -> None:
    stored = _object(path / "summary.json", SUMMARY_SCHEMA, found)
    if stored is None:
        return
    scored, errored = (map(Episode.from_json, read(path)) for read in (scanning.episodes, scanning.failures))
    fresh = summarise(scored, errored, {"digest": None, **manifest}, planned)
    found.add_changes("summary.json", leaves(_named(stored), _named(fresh), ""))


def _named(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with its groups by name, so that a group that is missing shifts no other."""
    groups = summary.get("groups")
    named: dict[str, Any] = {}
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        known = isinstance(group, Mapping)
        parts = [str(group.get(name) or "none") for name in ("mode", "attack", "suite")] if known else [str(i)]
        named["/".join(parts)] = group
    return {**summary, "groups": named}


def _texts(value: object) -> Iterator[str]:
    return (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text)


def _brief(value: object) -> str:
    """A value on one line, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}... ({len(text)} characters)"
