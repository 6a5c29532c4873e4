"""Numbers that others published, which stand in tables of their own, never beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fate_gym.leaderboards.regraded import Row, kept
from fate_gym.leaderboards.site.text import NOTHING
from fate_gym.storage import read_yaml


@dataclass(frozen=True, slots=True)
class Reported:
    """One table of one source.

    Attributes:
        benchmark: The benchmark's name.
        source: Who published it.
        caveat: What a reader must know; "" if nothing.
        metrics: Heads of the columns.
        rows: (model, method, values), in per cent where the source prints shares, with the digits that it prints; a
            dash where it gives none.
    """

    benchmark: str
    source: str
    caveat: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def reported(env: str) -> list[Reported]:
    """Returns the tables of the benchmark that an environment is of.

    Args:
        env: Gymnasium id, such as "fate/AgentDojo-v0".
    """
    content = read_yaml(files("fate_gym.leaderboards") / "results" / "reported.yaml", "results/reported.yaml")
    benchmark = env.rpartition("/")[2].rpartition("-v")[0]
    return [_table(entry) for entry in content["tables"] if entry["benchmark"] == benchmark]


def regraded_tables(env: str) -> list[Reported]:
    """Returns the public logs of an environment that were graded here, a table for each attack or mode."""
    rows = [row for row in kept() if row.env == env]
    tables = []
    for mode, attack in dict.fromkeys((row.mode, row.attack) for row in rows):
        of = [row for row in rows if (row.mode, row.attack) == (mode, attack)]
        metrics = tuple(dict.fromkeys(name for row in of for name in row.ours))
        heads = [head for name in metrics for head in (name, f"{name} as recorded")]
        tables.append(
            Reported(
                benchmark=env,
                source=f"attack: {attack}" if attack else f"{mode} tasks",
                caveat="; ".join(dict.fromkeys(row.source for row in of)),
                metrics=(*heads, "n", "missing"),
                rows=tuple((row.agent, f"{row.version}{' (old)' * row.is_old}", _both(row, metrics)) for row in of),
            )
        )
    return tables


def _both(row: Row, metrics: Sequence[str]) -> tuple[str, ...]:
    cells = []
    for name in metrics:
        value = row.ours.get(name, (None,))[0]
        cells += [_printed(value, 100, 1), _printed(row.recorded.get(name), 100, 1)]
    return (*cells, str(row.n), NOTHING if row.missing is None else str(row.missing))


def _table(entry: Mapping[str, Any]) -> Reported:
    # YAML does not keep 0.540's last digit, its neighbours tell of it.
    digits = max(len(str(value).partition(".")[2]) for row in entry["rows"] for value in row["values"])
    scale, digits = (100, max(0, digits - 2)) if entry["unit"] == "share" else (1, digits)
    return Reported(
        benchmark=entry["benchmark"],
        source=entry["source"],
        caveat=entry.get("caveat", ""),
        metrics=tuple(entry["metrics"]),
        rows=tuple(
            (row["model"], row["method"], tuple(_printed(value, scale, digits) for value in row["values"]))
            for row in entry["rows"]
        ),
    )


def _printed(value: float | None, scale: int, digits: int) -> str:
    return NOTHING if value is None else f"{scale * value:.{digits}f}"
