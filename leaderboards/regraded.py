"""What others recorded and published, scored here by one grader: rates of imported runs, ours beside the recorded ones.

    fate-gym leaderboard regraded RUN... --out leaderboards/results/regraded.json

writes figures alone, no text of any log. The package ships with such a file; its rows stand in tables of their own.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.errors import RunError
from fate_gym.evaluation.run import load_run
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.summary import ALL

SCHEMA: Final = "fate-gym/regraded/1"

NEWEST: Final[Mapping[str, str]] = {"fate/AgentDojo-v0": "v1.2.2"}
"""Environment -> the newest version of its benchmark; rows of older ones are marked."""

_SCORES: Final[Mapping[str, Mapping[str, tuple[str, bool]]]] = {
    "attacked": {"ASR": ("security", True), "TSR": ("utility", False)},
    "benign": {"utility": ("utility", False), "BRR": ("refused", False)},
    "harmful": {"HCR": ("security", True), "refused": ("refused", False)},
}
"""Mode -> metric -> the recorded score that it is the mean of, and whether of 1 minus it."""

_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One imported run under one attack, or without one, over all its suites.

    Attributes:
        source: Where the logs are from, with commit and licence.
        agent: The model, and the defences around it.
        env: Gymnasium id.
        version: The benchmark's version; "" where it has none.
        written: Months in which the first and the last log were written; "" where no log says.
        mode: Of the episodes.
        attack: The attack, None without one.
        n: Episodes.
        missing: Episodes of the run's attacks that were not recorded.
        ours: Metric -> (value, low, high, n), with a 95 % interval; the value is None where n is 0.
        recorded: Metric -> the mean of the recorded scores of the same episodes.
        differences: Class -> how many recorded scores differ from ours.
    """

    source: str
    agent: str
    env: str
    version: str
    written: str
    mode: str
    attack: str | None
    n: int
    missing: int | None
    ours: Mapping[str, Sequence[float | None]]
    recorded: Mapping[str, float]
    differences: Mapping[str, int]

    @property
    def is_old(self) -> bool:
        """Whether the benchmark has a newer version, whose tasks or graders may differ."""
        return self.version != NEWEST.get(self.env, self.version)


def regrade(paths: Sequence[Path]) -> list[Row]:
    """Reads the rows of imported runs.

    Raises:
        RunError: A folder is not that of an imported run.
    """
    return [row for path in paths for row in _rows(path)]


def _rows(path: Path) -> Iterator[Row]:
    run = load_run(path)
    origin = run.origin
    if origin is None:
        raise RunError(f"{path} was not imported: nobody recorded verdicts of it")
    of_group = {episode.key: (episode.mode, episode.attack) for episode in run.episodes}
    values: dict[tuple[str, str | None], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    differences: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    for recorded in {entry.key: entry for entry in RunFolder(path).recorded()}.values():
        group = of_group[recorded.key]
        differences[group].update(recorded.differences.values())
        for name, (score, inverted) in _SCORES.get(group[0], {}).items():
            if score in recorded.scores:
                values[group][name].append(1 - recorded.scores[score] if inverted else recorded.scores[score])
    config = run.manifest["config"]
    for entry in run.summary["groups"]:
        if entry["suite"] != ALL:
            continue
        group = entry["mode"], entry["attack"]
        yield Row(
            source=origin.source,
            agent=str(run.summary["agent"]),
            env=config["env"],
            version=str(config["env_args"].get("version", "")),
            written="" if origin.first is None else f"{origin.first[:7]} to {str(origin.last)[:7]}",
            mode=entry["mode"],
            attack=entry["attack"],
            n=entry["n"],
            missing=run.summary["episodes"]["missing"],
            ours={name: _rounded(entry["metrics"][name]) for name in values[group]},
            recorded={name: round(sum(means) / len(means), _DIGITS) for name, means in values[group].items()},
            differences=dict(sorted(differences[group].items())),
        )


def _rounded(estimate: Mapping[str, Any]) -> list[float | None]:
    numbers = [estimate[name] for name in ("value", "low", "high", "n")]
    return [round(number, _DIGITS) if isinstance(number, float) else number for number in numbers]


def to_json(rows: Sequence[Row]) -> str:
    """Returns rows as a file has them, a line each."""
    lines = ",\n".join(json.dumps(_plain(row), separators=(",", ":"), allow_nan=False) for row in rows)
    return f'{{"schema":"{SCHEMA}","rows":[\n{lines}\n]}}\n'


def _plain(row: Row) -> dict[str, Json]:
    return {name: getattr(row, name) for name in Row.__slots__}


def kept() -> list[Row]:
    """Returns the rows with which the package ships."""
    content = json.loads((files("fate_gym.leaderboards") / "results" / "regraded.json").read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]]
