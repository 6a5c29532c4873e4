"""`fate-gym leaderboard verify`: whether a run folder agrees with itself and with the benchmark.

What is checked: the files are whole, of known schemas, and hold no other fields; the settings give the digest that the
manifest names; versions and checksums are those of this installation; every episode of the task list is there once;
every episode, played again in a fresh environment, gives the same record; the summary follows from the episodes.
That is consistency, not authenticity. `fields` says of every field how far it can be checked, and each report lists
what remains the submitter's word.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fate_gym.agents import Agent, is_privileged
from fate_gym.agents.defences import DETECTOR, defend_again
from fate_gym.agents.scripted import NOOP
from fate_gym.episode import Episode, Shown
from fate_gym.errors import CUTS, FateGymError, RunError, UsageError
from fate_gym.evaluation.keys import Keys
from fate_gym.evaluation.manifest import make_manifest, run_digest
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.recorded import CLASSES, Origin, differences
from fate_gym.evaluation.replaying import Recording, replay
from fate_gym.evaluation.settings import Settings, read_settings
from fate_gym.evaluation.store import SCHEMA as RUN_SCHEMA
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.summary import SCHEMA as SUMMARY_SCHEMA
from fate_gym.evaluation.summary import summarise
from fate_gym.leaderboards import fields, scanning
from fate_gym.leaderboards.findings import Verification, brief
from fate_gym.leaderboards.groups import strange_name
from fate_gym.leaderboards.judgements import as_judged, is_judged
from fate_gym.leaderboards.replay import ABSENT, Change, changes, leaves
from fate_gym.leaderboards.runs import refuse_links
from fate_gym.leaderboards.site.training import MARK, STEPS
from fate_gym.leaderboards.submissions import FILE, read_submission
from fate_gym.rewards import Verdict
from fate_gym.storage import encode_line, parse, read_object

_MOST: Final = 5
"""Differences of one episode that are listed; a changed action changes all that follows it."""

_MOST_EPISODES: Final = 1_000_000
"""A task list that is longer would fill the memory by itself, whatever the folder holds."""

_MOST_DEFENCES: Final = 16
"""Each of them costs time in every turn of every episode."""

_OURS: Final = ("fate-gym",)
"""Packages whose version decides scores; those of benchmarks stand in the provenance."""


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
    refuse_links(path)
    report = Verification(path)
    declared = _check_submission(path, report)
    manifest = _object(path / "manifest.json", RUN_SCHEMA, report)
    if manifest is None:
        return report
    try:
        settings = read_settings(manifest, trusted)
        plan = _plan(settings)
    except FateGymError:
        raise
    except Exception as error:
        # A stranger's settings may make a benchmark raise anything.
        report.add("manifest.json", f"no environment can be made from its settings: {error}")
        return report
    _check_manifest(manifest, plan, settings, report)
    imported = _is_imported(manifest, report)
    _check_files(path, plan, report, imported=imported)
    if imported:
        _check_recorded(path, report)
    _check_marks(manifest, declared, report)
    defences = _defences(settings, report, imported=imported)
    asyncio.run(_check_replays(path, plan, settings, defences, report, concurrency))
    _check_summary(path, manifest, plan, report)
    _list_unknown(path, manifest, report)
    return report


def _plan(settings: Settings) -> Plan:
    config = settings.config
    if config.repeats > 1:
        once = dataclasses.replace(config, repeats=1).plan()
        if len(once.items) * config.repeats > _MOST_EPISODES:
            raise ValueError(f"config.repeats is {config.repeats}, which makes more than {_MOST_EPISODES} episodes")
    return config.plan()


def _check_submission(path: Path, report: Verification) -> set[str] | None:
    """Returns the contamination that `submission.yaml` declares; None without that file."""
    try:
        submission = read_submission(path)
    except RunError as error:
        report.add(FILE, str(error))
        return None
    if submission is None:
        report.notes.append(f"no {FILE}: this run is not yet a submission")
        return None
    return set(submission.contaminated_by)


def _object(path: Path, schema: str, report: Verification) -> dict[str, Any] | None:
    try:
        value = read_object(path, schema).values
    except RunError as error:
        report.add(path.name, str(error))
        return None
    if value["schema"] != schema:
        report.add(path.name, f"schema: stored {brief(value['schema'])}, this fate-gym checks {schema}")
        return None
    for name in fields.strange(value, fields.FILES[path.name]):
        report.add(path.name, f"{name}: is not a field that fate-gym writes")
    return value


def _check_manifest(manifest: Mapping[str, Any], plan: Plan, settings: Settings, report: Verification) -> None:
    """Checks digest, versions, checksums and licence, and notes what was not the whole benchmark."""
    fresh = make_manifest(settings.config, plan, NOOP)
    if manifest.get("digest") != run_digest(manifest["config"], manifest.get("provenance"), settings.paths):
        report.add("manifest.json", "digest: it is not that of the settings and versions, one of them was changed")
    provenance = _with_judges(fresh["provenance"], manifest.get("provenance"), settings)
    report.add_changes("manifest.json", leaves(manifest.get("provenance"), provenance, "provenance"))
    for name, there, here in leaves(manifest.get("versions"), fresh["versions"], ""):
        if name in _OURS or not name:
            report.add("manifest.json", f"versions.{name}: stored {brief(there)}, here {brief(here)}")
        else:
            report.notes.append(f"{name} was {brief(there)}, here it is {brief(here)}")
    report.add_changes("manifest.json", leaves(manifest.get("data_policy"), fresh["data_policy"], "data_policy"))
    if settings.config.limit is not None or settings.config.tasks is not None:
        tasks = brief(settings.config.tasks)
        report.notes.append(f"a part of the benchmark: limit {settings.config.limit}, tasks {tasks}")
    if settings.config.env_args.get("split") is not None:
        report.notes.append(f"split: {brief(settings.config.env_args['split'])}")
    stored = manifest.get("model_name", ABSENT)
    report.add_changes("manifest.json", leaves(stored, fresh["model_name"], "model_name"))
    if (strange := strange_name(manifest)) is not None:
        agent = brief(manifest["config"]["agent"])
        report.notes.append(
            f"attacks address the model as {brief(strange)}, which is no name of {agent}: it stands in the injected "
            "text, so that boards compare this run with none that has another"
        )
    if settings.judges:
        report.notes.append(f"judges are not asked again: {', '.join(settings.judges)} left out")


def _with_judges(fresh: list[dict[str, Any]], stored: object, settings: Settings) -> list[dict[str, Any]]:
    """Puts the names of the run's judges into a provenance that was made without them."""
    entries = stored if isinstance(stored, list) and len(stored) == len(fresh) else [{}] * len(fresh)
    named = []
    for variant, entry in zip(fresh, entries, strict=True):
        judges = {}
        for option, (_, name) in settings.judges.items():
            claimed = entry.get(option) if isinstance(entry, Mapping) else None
            if option in variant:
                judges[option] = name or (claimed if isinstance(claimed, str) else "the name of a judge")
        named.append({**variant, **judges})
    return named


def _check_files(path: Path, plan: Plan, report: Verification, *, imported: bool) -> None:
    """Checks every line, and that the task list is complete; what nobody recorded cannot be imported."""
    keys = Keys()
    for episode in scanning.episodes(path, report.add):
        keys.add(episode.key)
        if plan.find(episode.key) is None:
            report.add(episode.key, "is not in the task list of these settings")
    errors = {failure.key: failure.status for failure in scanning.failures(path, report.add)}
    missing = [key for key in plan.items.keys if key not in keys]
    if imported and missing:
        planned = len(plan.items)
        report.notes.append(f"imported: {len(missing)} of the {planned} episodes of its attacks were not recorded")
    for key in missing:
        if not imported or key in errors:
            error = f" (it errored: {errors[key]}; the same command tries it again)" if key in errors else ""
            report.add(key, f"is missing: the task list has it, and no episode does{error}")
    for key in sorted(key for key in errors if plan.find(key) is None):
        report.add(key, "is in failures.jsonl and not in the task list of these settings")


def _is_imported(manifest: Mapping[str, Any], report: Verification) -> bool:
    """Whether a run was imported; its manifest then says from what."""
    try:
        origin = Origin.read(manifest, "manifest.json")
    except RunError as problem:
        report.add("manifest.json", str(problem))
        return True
    if origin is not None:
        report.notes.append(f"imported: {origin}")
    return origin is not None


def _check_recorded(path: Path, report: Verification) -> None:
    """Checks that each imported episode has one record of its log, and that the differences follow from both."""

    def damaged(problem: RunError) -> None:
        report.add("recorded.jsonl", str(problem))

    try:
        recorded = {entry.key: entry for entry in RunFolder(path).recorded(damaged)}
    except RunError as problem:
        damaged(problem)
        return
    for episode in scanning.episodes(path):
        entry = recorded.get(episode.key)
        if entry is None:
            report.add(episode.key, "has no record of its log in recorded.jsonl")
            continue
        fresh = differences(entry, episode.verdict, episode.ended)
        report.add_changes(episode.key, leaves(dict(entry.differences), fresh, "recorded.differences"))
    count = Counter(name for entry in recorded.values() for name in entry.differences.values())
    for name, axes in sorted(count.items()):
        report.notes.append(f"the logs' verdicts differ on {axes} axes: {name} ({CLASSES[name]})")


def _check_marks(manifest: Mapping[str, Any], declared: set[str] | None, report: Verification) -> None:
    """Checks that a submission declares the contamination that the run is marked with, and the agent's privilege."""
    marks = set(_texts(manifest.get("contaminated_by")))
    if declared is not None and marks - declared:
        report.add(FILE, f"contaminated_by does not declare what the run is marked with: {', '.join(sorted(marks))}")
    if every := sorted(marks | (declared or set())):
        report.notes.append(f"trained on {', '.join(every)}: the board says so, and no front has this run")
    stored, known = manifest.get("privileged", ABSENT), is_privileged(manifest["config"]["agent"])
    if not isinstance(stored, bool) or known not in (None, stored):
        true = "true or false" if known is None else brief(known)
        report.add("manifest.json", f"privileged: stored {brief(stored)}, of this agent it is {true}")


async def _check_replays(
    path: Path,
    plan: Plan,
    settings: Settings,
    defences: tuple[str, ...] | None,
    report: Verification,
    concurrency: int,
) -> None:
    def compare(agent: Agent, again: Episode) -> None:
        episode = under_way.pop(agent)
        report.replayed += 1
        if defences is None:
            again = dataclasses.replace(again, shown=episode.shown)
        # Written and read once more, as the stored one was: text that no file can hold becomes what a file holds.
        stored, fresh = episode.to_json(), parse(encode_line(again.to_json()))
        if episode.status != "ok":
            found: list[Change] = list(_failure_changes(episode, stored, fresh))
        elif again.status != "ok":
            found = [("replay", "ok", f"{again.status}: {again.error}")]
        else:
            claims = episode.verdict.to_json()
            for axis, verdict in fresh["verdict"].items():
                if is_judged(axis, claims[axis], verdict, settings.judges.values()):
                    report.not_rescored[axis] += 1
                    fresh["verdict"][axis] = as_judged(axis, claims[axis], verdict)
            found = list(changes(stored, fresh))
        if found:
            lines.append((episode.key, found))

    def recordings() -> Iterator[tuple[Item, Agent]]:
        for episode in itertools.chain(scanning.episodes(path), scanning.failures(path)):
            if (item := plan.find(episode.key)) is not None:
                agent = defend_again(Recording.of(episode), defences or (), episode.shown or Shown())
                under_way[agent] = episode
                yield item, agent

    lines: list[tuple[str, list[Change]]] = []
    under_way: dict[Agent, Episode] = {}
    await replay(plan, recordings(), compare, concurrency=concurrency)
    # Episodes end in no order; the report has one.
    for key, differing in sorted(lines, key=lambda line: line[0]):
        report.add_changes(key, differing, _MOST)


def _defences(settings: Settings, report: Verification, *, imported: bool) -> tuple[str, ...] | None:
    """Returns the defences of a run; None where nobody knows what they showed the agent."""
    defences = settings.config.defences
    if defences and imported:
        report.unknown.append("what the defences showed the agent: the logs do not say")
        return None
    if len(defences) > _MOST_DEFENCES:
        report.add("manifest.json", f"config.defences: {len(defences)} are more than anybody would put around an agent")
        return ()
    try:
        defend_again(NOOP, defences, Shown())
    except (ValueError, UsageError) as error:
        report.unknown.append(f"what the defences showed the agent: {error}")
        return None
    if any(spec.startswith(DETECTOR) for spec in defences):
        report.unknown.append("what injection detectors flagged: their models are not asked again")
    return defences


def _failure_changes(failure: Episode, stored: dict[str, Any], fresh: dict[str, Any]) -> Iterator[Change]:
    """Yields what is otherwise in a failed episode that was played up to where its agent gave no answer.

    What made an environment or a judge fail need not happen again: of such an episode the task alone is compared.
    """
    fresh["verdict"] = Verdict.unscored(failure.error or "").to_json()
    names = (*fields.TASK, "verdict") if stored["status"] != fresh["status"] else tuple(stored)
    yield from changes({name: stored[name] for name in names}, {name: fresh[name] for name in names})


def _check_summary(path: Path, manifest: Mapping[str, Any], plan: Plan, report: Verification) -> None:
    stored = _object(path / "summary.json", SUMMARY_SCHEMA, report)
    if stored is None:
        return
    summary = summarise(scanning.episodes(path), scanning.failures(path), {"digest": None, **manifest}, plan.items.keys)
    # Written and read once more, so that numbers of NumPy are plain ones.
    fresh = parse(encode_line(summary))
    report.add_changes("summary.json", leaves(_named(stored), _named(fresh), ""))


def _named(summary: Mapping[str, object]) -> dict[str, object]:
    """A summary with its groups by name, so that a group that is missing or given twice shifts no other."""
    groups = summary.get("groups")
    named: dict[str, object] = {}
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        known = isinstance(group, Mapping)
        name = "/".join(str(group.get(part) or "none") for part in ("mode", "attack", "suite")) if known else str(i)
        named[f"{name} (again, as number {i})" if name in named else name] = group
    return {**summary, "groups": named}


def _list_unknown(path: Path, manifest: Mapping[str, Any], report: Verification) -> None:
    """Lists what remains the submitter's word in this run."""
    there = {name: entry for name, entry in fields.MANIFEST.items() if name.partition(".")[0] in manifest}
    lines = [fields.ALWAYS, *report.unknown, *fields.doubts(there), *fields.doubts(fields.EPISODE)]
    if (path / "recorded.jsonl").exists():
        lines += fields.doubts(fields.RECORDED)
    if (path / FILE).exists():
        lines += fields.doubts(fields.SUBMISSION)
    if any((path / name).exists() for name in (MARK, STEPS)):
        lines.append(f"the curves of a training: {MARK} and {STEPS} are the submitter's own")
    for axis, count in sorted(report.not_rescored.items()):
        lines.append(f"{axis} of {count} episodes: a judge scored it; what holds whatever a judge says was checked")
    if cut := sum(episode.ended in CUTS for episode in scanning.episodes(path)):
        lines.append(f"whether the {cut} episodes that something other than the environment cut off really were")
    if next(scanning.failures(path), None) is not None:
        lines += fields.doubts(fields.FAILURE)
    report.unknown = list(dict.fromkeys(lines))


def _texts(value: object) -> Iterator[str]:
    return (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text)
