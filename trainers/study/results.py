"""The results of a study: one small file a training, from which all tables and pictures are made."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fate_gym.errors import RunCorruptError, RunError
from fate_gym.storage import check_same_settings, make_folder, read_object, replace_file
from fate_gym.trainers.config import TrainConfig, config_from
from fate_gym.trainers.study.arms import ARMS, BASE
from fate_gym.trainers.study.plan import Replicate, Study
from fate_gym.trainers.study.records import Result, Row, Summary
from fate_gym.trainers.study.scoring import SCORED
from fate_gym.trainers.study.summary import tokens_of

SCHEMA: Final = "fate-gym/study-result/1"
_PACKAGES: Final = ("fate-gym", "agentdojo", "torch", "transformers", "trl", "numpy")
_DIGITS: Final = 5


def base_result(
    study: Study, replicate: Replicate, config: TrainConfig, rows: Mapping[str, Row], tasks: Mapping[str, list[str]]
) -> Result:
    """Returns the result of the policy before training.

    Args:
        study: The study.
        replicate: The replicate.
        config: The settings of its first arm, of which those that make the base policy matter.
        rows: Its row on each test set.
        tasks: The tasks of each test set, the same for every arm.
    """
    return {**_head(study, replicate, BASE, config), "scores": _scores(rows), "tasks": dict(tasks)}


def arm_result(study: Study, replicate: Replicate, arm: str, config: TrainConfig, summary: Summary) -> Result:
    """Returns the result of a training, a few kilobytes of its summary.

    Args:
        study: The study.
        replicate: The replicate.
        arm: The arm.
        config: The settings of the training.
        summary: Its summary.
    """
    rows = {summary["main"]: summary["after"]} | {name: both["after"] for name, both in summary["splits"].items()}
    curve, spent = [], 0
    for record in summary["rounds"]:
        spent += tokens_of(record)
        curve.append({"tokens": spent, **_scores({"dev": record["dev"]})["dev"]})
    first = summary["rounds"][1]["selected"]
    budget = dict(summary["budget"])
    if budget["limit"] is not None:
        budget["unspent"] = budget["limit"] - budget["tokens"]
    return {
        **_head(study, replicate, arm, config),
        "scores": _scores(rows),
        "dev": curve,
        "best_round": summary["best"]["round"],
        "repairs_in_round_1": first and {name: _counts(counts) for name, counts in first["modes"].items()},
        "budget": budget,
    }


def is_done(folder: Path, replicate: Replicate, arm: str, config: TrainConfig) -> bool:
    """Whether a folder of results holds that of a training already.

    Raises:
        RunMismatchError: It holds one with other settings, of those that this training reads.
        RunError: Its file is damaged.
    """
    path = _path(folder, replicate, arm)
    if not path.exists():
        return False
    stored = read_object(path, SCHEMA).object("settings").values
    try:
        # Read as settings, so that one that is newer than the result has its default.
        earlier = config_from(stored).to_json()
    except ValueError as error:
        raise RunCorruptError(f"{path}: {error}") from error
    check_same_settings(f"{path} holds a result", earlier, config.to_json(), ("concurrency", *config.unread))
    return True


def write_result(folder: Path, result: Result) -> None:
    """Writes a result into a folder of results."""
    make_folder(folder)
    replace_file(_path(folder, Replicate(**result["replicate"]), result["arm"]), _dump(result).encode())


def _path(folder: Path, replicate: Replicate, arm: str) -> Path:
    return folder / f"{replicate.name}-{arm}.json"


def read_results(folder: Path) -> list[Result]:
    """Reads all results in a folder, in the order of their names.

    Raises:
        RunError: There is none, a file is damaged, the results are of several studies, or one is of an unknown arm.
    """
    results = [read_object(path, SCHEMA).values for path in sorted(folder.glob("*.json"))]
    if not results:
        raise RunError(f"there is no result of a study in {folder}")
    if len(names := {str(result["study"]) for result in results}) > 1:
        raise RunError(f"{folder} holds results of several studies: {', '.join(sorted(names))}")
    if unknown := sorted({str(result["arm"]) for result in results} - {BASE, *ARMS}):
        raise RunError(f"{folder} holds results of arms that this version does not have: {', '.join(unknown)}")
    return results


def _head(study: Study, replicate: Replicate, arm: str, config: TrainConfig) -> Result:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "overrides": list(study.overrides),
        "replicate": {"seed": replicate.seed, "fold": replicate.fold},
        "arm": arm,
        "about": "the policy before training" if arm == BASE else ARMS[arm].about,
        "settings": config.to_json(),
        "commit": _commit(),
        "versions": {**{name: importlib.metadata.version(name) for name in _PACKAGES}, "python": _python()},
    }


def _python() -> str:
    return platform.python_version()


def _commit() -> str | None:
    """The commit of this package's source; None outside of a repository, or if git is not there."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def _scores(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows without what no table shows, and rounded."""
    names = [name for _, name in SCORED]
    return {
        test: {
            "n": row["n"],
            "errors": row.get("errors", 0),
            **{
                name: {part: _rounded(row[name].get(part)) for part in ("value", "low", "high", "n")}
                for name in names
                if name in row
            },
        }
        for test, row in rows.items()
    }


def _counts(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(counts[name]) for name in ("failures", "repaired", "candidates", "accepted", "acceptance")}


def _rounded(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value


def _dump(result: Result) -> str:
    """A readable file: a line for each test set's scores, and for each other entry."""
    lines = []
    for key, value in result.items():
        if key in ("scores", "tasks"):
            inner = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            lines.append(f"{json.dumps(key)}: {{\n  {inner}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"
