"""What the groups of a run's summary say about a row, beside its metrics."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

from fate_gym.attack import attack_label, is_attack
from fate_gym.benchmark import disclosure
from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards.columns import column
from fate_gym.leaderboards.runs import LoadedRun

Group: TypeAlias = Mapping[str, Any]
"""Episodes of one mode, attack and suite, as a summary has them."""


def mixed(refusals_by: Iterable[str]) -> bool:
    """Whether both rules ("NAME/VERSION") and judges ("judge:NAME") recognised refusals; their numbers do not mix."""
    kinds = {rule.startswith("judge:") for rule in refusals_by if ":" in rule or "/" in rule}
    return len(kinds) > 1


def partial_reason(run: LoadedRun, main: Group | None, benign: Group | None) -> str:
    """Says which part of a row is missing; "" if none is."""
    counts, config = run.summary["episodes"], run.manifest["config"]
    errored = sum(sum(part["errors"].values()) for part in (main, benign) if part)
    reasons = {
        "the run never ended": counts["planned"] is None,
        f"{counts['missing']} of {counts['planned']} episodes are missing": bool(counts["missing"]),
        f"{errored} episodes errored": errored > 0,
        f"{run.malformed} malformed records": run.malformed > 0,
        f"limited to {config.get('limit')} tasks an attack": config.get("limit") is not None,
        "only chosen tasks": bool(config.get("tasks")),
        "no episodes without attack": benign is None and main is not None and main["mode"] != "diagnosis",
        "no episodes under attack or of harmful requests": main is None,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def protocol(run: LoadedRun, group: Group) -> str:
    """Describes what two rows must share to be compared: the same tasks, environment, data and graders."""
    config = run.manifest["config"]
    # Where the data lay says nothing; its checksum is in the provenance.
    declared = disclosure(config["env"])
    apart = {"suite", "attack", None if declared is None else declared.model_option}
    settings = {name: value for name, value in without_paths(config).items() if name not in apart}
    settings |= {} if (strange := strange_name(run.manifest)) is None else {"model_name": strange}
    if group["suite"] == ALL:
        settings["suite"] = sorted(
            {entry["suite"] for entry in run.summary["groups"] if entry["mode"] == group["mode"]} - {ALL}
        )
    settings.update({name: config[name] for name in ("tasks", "limit") if config.get(name) is not None})
    if "limit" in settings:
        settings["seed"] = config.get("seed")
    attacks = config.get("attack")
    payloads = [attack for attack in (attacks if isinstance(attacks, list) else ()) if isinstance(attack, dict)]
    if own := [attack for attack in payloads if is_attack(attack) and attack_label(attack) == group["attack"]]:
        settings["payloads"] = own
    settings["provenance"] = _provenance(run.manifest.get("provenance"), group["suite"])
    return cut(json.dumps(settings, sort_keys=True), 1000)


def strange_name(manifest: Mapping[str, Any]) -> str | None:
    """Returns the name by which attacks address the model, if it is not the model's own.

    It stands in the injected text, and an attack that calls the model by another name is another attack. Each model has
    its own, which is therefore no part of the protocol.
    """
    config = manifest["config"]
    declared = disclosure(config["env"])
    return (
        None
        if declared is None
        else declared.strange_name(config["env_args"], config["agent"], manifest.get("model_name"))
    )


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the environment's arguments without those that name a path, which says nothing and names a home."""
    declared = disclosure(config["env"])
    if declared is not None:
        return {name: value for name, value in config["env_args"].items() if name not in declared.path_options}
    # Nobody knows which options of an unregistered environment are paths: those that look like one are left out.
    return {
        name: value
        for name, value in config["env_args"].items()
        if not (isinstance(value, str) and PurePath(value).is_absolute())
    }


def cut(text: str, longest: int = 200) -> str:
    """Cuts a name that no honest run has, so that it cannot fill every table; its digest keeps it apart."""
    if len(text) <= longest:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[:longest]}… ({len(text)} characters, sha256 {digest})"


def _provenance(stored: object, suite: str) -> dict[str, Any]:
    """What scores depend on; of values by suite only the suite's own, since a run may hold further suites."""
    variants = [variant for variant in stored if isinstance(variant, dict)] if isinstance(stored, list) else []
    merged = {name: value for variant in variants for name, value in variant.items()}
    return {
        name: value[suite] if isinstance(value, dict) and suite in value else value for name, value in merged.items()
    }


def passes(parts: Sequence[Group]) -> dict[str, float | None]:
    """Returns pass^k by column; {} without repeats."""
    return {
        column(part["mode"], metric).name: value
        for part in parts
        for metric, value in part.get("pass_hat_k", {}).items()
        if metric != "k"
    }


def errors(parts: Sequence[Group]) -> dict[str, int]:
    """Counts episodes that errored, by status, and graders that failed, by axis."""
    counts: dict[str, int] = defaultdict(int)
    for part in parts:
        for status, count in part["errors"].items():
            counts[status] += count
        for axis, count in part["grader_errors"].items():
            counts[f"grader: {axis}"] += count
    return dict(sorted(counts.items()))


def per_episode(parts: Sequence[Group], names: Sequence[str]) -> float | None:
    """Returns the sum of some usages over the number of episodes; None where one of them is unknown."""
    totals = [part["usage"].get(name) for part in parts for name in names]
    n: int = sum(part["n"] for part in parts)
    known = [float(total) for total in totals if total is not None]
    return math.fsum(known) / n if n and len(known) == len(totals) else None


def seconds(parts: Sequence[Group]) -> float | None:
    """Returns the mean wall-clock seconds of an episode; None without episodes."""
    timed = [(part["mean_seconds"], part["n"]) for part in parts if part["mean_seconds"] is not None]
    n = sum(count for _, count in timed)
    return math.fsum(mean * count for mean, count in timed) / n if n else None
