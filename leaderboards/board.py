"""Boards: for each environment a table of rows, agent x attack x suite, and which of them no other row beats.

There is no total score. A row is compared with rows that were measured alike (`Row.protocol`) and on nothing but what
it holds; what is missing is said beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from fate_gym.agents import REFERENCES, Gullible, Oracle
from fate_gym.evaluation.summary import ALL
from fate_gym.leaderboards import groups
from fate_gym.leaderboards.columns import COLUMNS, PAIRS, REFUSALS, SAFETY, VOLUME, Column, column
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.pareto import fronts, hypervolume

MIN_CLUSTERS: Final = 10
"""From so few user tasks, or fewer, nothing is claimed: the estimate says so, and the row is on no front."""

TOO_SMALL: Final = "n too small to say"

RowKey: TypeAlias = tuple[str, str, str | None, str]
"""Run, mode, attack and suite."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of a row.

    Attributes:
        value: The mean, a share in [0, 1]; None where there is nothing to average.
        low: Lower bound of its 95 % interval; None with `value`.
        high: Upper bound.
        n: Episodes behind it.
        note: What a reader must know: "" or `TOO_SMALL` or why there is no value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One run under one attack on one suite.

    Attributes:
        run_id: The run's; a link to its page.
        agent: The agent, without defences.
        defences: Around the agent, the innermost first.
        env: Gymnasium id.
        mode: Of the episodes other than the benign ones: "attacked", "harmful", "diagnosis"; "benign" where there
            are no others.
        attack: The attack; None without one.
        suite: The suite, or "all".
        protocol: How it was measured; only rows with equal ones are compared.
        metrics: By name of the column.
        passes: pass^k by name of the column; {} without repeats.
        k: Of `passes`; None without repeats.
        errors: Episodes that errored, by status, and graders that failed, as "grader: AXIS".
        truncated: Scored episodes that were cut off.
        content_filtered: Scored episodes that the provider's content filter stopped; they count as refusals.
        partial: Whether a part is missing; such a row is on no front.
        partial_reason: Which part; "" if none is.
        on_front: Whether no comparable row is both safer and more useful; False where there is nothing to compare.
        privileged: Whether the agent is given the ground truth.
        reference: Whether the agent follows a script or is given the ground truth; such a row is a mark to measure by,
            on no front.
        hypervolume: The volume that it dominates alone, (1 - ASR) x TSR x (1 - BRR) or its like; None if unknown.
        contaminated_by: What the model has seen of the benchmark; such a row is on no front.
        refusals_by: Rules or judges that recognised refusals. Where both did, refusals have no value.
        cost: USD an episode; None if unknown.
        tokens: Tokens an episode, prompt and completion; None if unknown.
        seconds: Wall-clock seconds an episode; None if unknown.
        date: Of the submission, ISO 8601; "" if unknown.
    """

    run_id: str
    agent: str
    defences: tuple[str, ...]
    env: str
    mode: str
    attack: str | None
    suite: str
    protocol: str
    metrics: Mapping[str, Estimate]
    passes: Mapping[str, float | None]
    k: int | None
    errors: Mapping[str, int]
    truncated: int
    content_filtered: int
    partial: bool
    partial_reason: str
    on_front: bool
    privileged: bool
    reference: bool
    hypervolume: float | None
    contaminated_by: tuple[str, ...]
    refusals_by: tuple[str, ...]
    cost: float | None
    tokens: float | None
    seconds: float | None
    date: str

    @property
    def key(self) -> RowKey:
        """Identifies it on its board: run, mode, attack, suite."""
        return self.run_id, self.mode, self.attack, self.suite

    @property
    def name(self) -> str:
        """Agent and defences."""
        return "+".join((self.agent, *self.defences))


@dataclass(frozen=True, slots=True)
class Front:
    """A Pareto comparison of rows that were measured alike; there may be references beside them.

    Attributes:
        name: "security x utility" or "cost x safety".
        x: Column of the first axis, or "cost" (USD an episode, lower is better).
        y: Column of the second axis.
        mode: The rows' mode.
        attack: The rows' attack.
        suite: The rows' suite.
        protocol: The rows' protocol.
        rows: Keys of all rows compared.
        references: Keys of the references that were measured like them.
        members: Keys of those rows that no other beats; () for a row alone, which nothing was compared with.
        hypervolume: The volume that the rows dominate together, as `Row.hypervolume`; None if it is known of no row.
    """

    name: str
    x: str
    y: str
    mode: str
    attack: str | None
    suite: str
    protocol: str
    rows: tuple[RowKey, ...]
    references: tuple[RowKey, ...]
    members: tuple[RowKey, ...]
    hypervolume: float | None


@dataclass(frozen=True, slots=True)
class Board:
    """All rows of one environment.

    Attributes:
        env: Gymnasium id.
        rows: By mode, attack, suite (all of them first), agent.
        columns: Of the metrics that any row has, in the order of a table.
        fronts: The Pareto comparisons there are.
    """

    env: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    fronts: tuple[Front, ...]


def build(runs: Sequence[LoadedRun]) -> list[Board]:
    """Makes a board for each environment, in the order of their ids."""
    rows: dict[str, list[Row]] = defaultdict(list)
    columns: dict[str, dict[str, Column]] = defaultdict(dict)
    for run in runs:
        for row, used in _rows(run):
            rows[row.env].append(row)
            columns[row.env].update({entry.name: entry for entry in used})
    return [_board(env, rows[env], columns[env]) for env in sorted(rows)]


def _board(env: str, rows: list[Row], columns: Mapping[str, Column]) -> Board:
    every_front = list(_fronts(rows))
    best = {key for front in every_front if front.name == "security x utility" for key in front.members}
    marked = [replace(row, on_front=row.key in best) for row in rows]
    order = {entry.name: i for i, entry in enumerate(COLUMNS)}
    return Board(
        env=env,
        rows=tuple(sorted(marked, key=_order)),
        columns=tuple(sorted(columns.values(), key=lambda entry: (order.get(entry.name, len(order)), entry.name))),
        fronts=tuple(every_front),
    )


def _order(row: Row) -> tuple[str | bool, ...]:
    return row.mode, row.attack or "", row.suite != ALL, row.suite, row.name, row.run_id


_PRIVILEGED: Final = {Oracle.name, Gullible.name}


def _rows(run: LoadedRun) -> Iterator[tuple[Row, list[Column]]]:
    every = run.summary["groups"]
    benign = {group["suite"]: group for group in every if group["mode"] == "benign"}
    others = [group for group in every if group["mode"] != "benign"]
    met = {group["suite"] for group in others}
    for group in others:
        yield _row(run, group, benign.get(group["suite"]))
    for suite, group in benign.items():
        if suite not in met:
            yield _row(run, None, group)


def _row(run: LoadedRun, main: groups.Group | None, benign: groups.Group | None) -> tuple[Row, list[Column]]:
    parts = [part for part in (main, benign) if part is not None]
    first = parts[0]
    refusals_by = tuple(sorted({rule for part in parts for rule in part["refusals_by"]}))
    columns = [column(part["mode"], metric) for part in parts for metric in part["metrics"]]
    metrics = {
        column(part["mode"], metric).name: _estimate(part, estimate)
        for part in parts
        for metric, estimate in part["metrics"].items()
    }
    if groups.mixed(refusals_by):
        for name in REFUSALS & set(metrics):
            metrics[name] = Estimate(None, None, None, metrics[name].n, "a rule and a judge told refusals: not mixed")
    reason = groups.partial_reason(run, main, benign)
    config = run.manifest["config"]
    # Runs of older versions do not say it.
    privileged = run.manifest.get("privileged", config["agent"] in _PRIVILEGED) is True
    row = Row(
        run_id=run.run_id,
        agent=groups.cut(config["agent"]),
        defences=tuple(groups.cut(name) for name in config["defences"]),
        env=groups.cut(config["env"]),
        mode=groups.cut(first["mode"]),
        attack=None if first["attack"] is None else groups.cut(first["attack"]),
        suite=groups.cut(first["suite"]),
        protocol=groups.protocol(run, first),
        metrics=metrics,
        passes=groups.passes(parts),
        k=min((part["pass_hat_k"]["k"] for part in parts if "pass_hat_k" in part), default=None),
        errors=groups.errors(parts),
        truncated=sum(part["truncated"] for part in parts),
        content_filtered=sum(part.get("content_filtered", 0) for part in parts),
        partial=bool(reason),
        partial_reason=reason,
        on_front=False,
        privileged=privileged,
        reference=privileged or config["agent"] in REFERENCES,
        hypervolume=None,
        contaminated_by=tuple(groups.cut(name) for name in run.contaminated_by),
        refusals_by=tuple(groups.cut(rule) for rule in refusals_by),
        cost=groups.per_episode(parts, ("cost_usd",)),
        tokens=groups.per_episode(parts, ("prompt_tokens", "completion_tokens")),
        seconds=groups.seconds(parts),
        date=run.submission.date if run.submission else "",
    )
    point = None if row.partial else _point(row)
    return replace(row, hypervolume=None if point is None else math.prod(point)), columns


def _estimate(part: groups.Group, stored: Mapping[str, Any]) -> Estimate:
    note = TOO_SMALL if 0 < min(part["clusters"], stored["n"]) <= MIN_CLUSTERS else ""
    return Estimate(stored["value"], stored["low"], stored["high"], stored["n"], note)


def _good(row: Row, name: str) -> float | None:
    """A column's value as a share that is good: 1 - value where lower is better."""
    estimate = row.metrics.get(name)
    if estimate is None or estimate.value is None or estimate.note:
        return None
    lower = next(entry.direction == "down" for entry in COLUMNS if entry.name == name)
    return 1 - estimate.value if lower else estimate.value


def _point(row: Row) -> tuple[float, ...] | None:
    values = [_good(row, name) for name in VOLUME.get(row.mode, ())]
    known = [value for value in values if value is not None]
    return tuple(known) if values and len(known) == len(values) else None


def _fronts(rows: Iterable[Row]) -> Iterator[Front]:
    alike: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.mode in PAIRS and not (row.partial or row.contaminated_by):
            alike[row.mode, row.attack or "", row.suite, row.protocol].append(row)
    for _, members in sorted(alike.items()):
        mode = members[0].mode
        x, y = PAIRS[mode]
        for name, first, second in (("security x utility", x, y), ("cost x safety", "cost", SAFETY[mode])):
            front = _front(name, first, second, members)
            if front is not None:
                yield front


def _front(name: str, x: str, y: str, rows: Sequence[Row]) -> Front | None:
    points = {}
    for row in rows:
        first = _good(row, x) if x != "cost" else (None if row.cost is None else -row.cost)
        second = _good(row, y)
        if first is not None and second is not None:
            points[row.key] = (first, second)
    if len(points) < 2:
        return None
    references = tuple(row.key for row in rows if row.reference and row.key in points)
    compared = tuple(key for key in points if key not in references)
    ranks = fronts([points[key] for key in compared]).tolist() if len(compared) > 1 else []
    volumes = [point for row in rows if not row.reference and (point := _point(row)) is not None]
    return Front(
        name=name,
        x=x,
        y=y,
        mode=rows[0].mode,
        attack=rows[0].attack,
        suite=rows[0].suite,
        protocol=rows[0].protocol,
        rows=compared,
        references=references,
        members=tuple(key for key, rank in zip(compared, ranks, strict=True) if rank == 1) if ranks else (),
        hypervolume=hypervolume(volumes) if volumes else None,
    )
