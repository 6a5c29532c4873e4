"""Boards for machines and for other documents: `leaderboard.json`, CSV, Markdown.

Names in a board come from strangers. Cells of CSV that a spreadsheet would run as a formula begin with an apostrophe;
in Markdown nothing of a name is markup; everywhere control and bidirectional characters are made visible.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.leaderboards.board import Board, Estimate, Row
from fate_gym.rendering import visible
from fate_gym.storage import SURROGATE

SCHEMA: Final = "fate-gym/leaderboard/1"
"""What `leaderboard.json` has under `schema`; the number rises when an older reader would misread it."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_MARKUP: Final = re.compile(r"([\\`*_\[\]#.!|~<>&:@/])")
_LONGEST: Final = 300
_DIGITS: Final = 6


def write_exports(boards: Sequence[Board], out: Path) -> list[Path]:
    """Writes `leaderboard.json`, `leaderboard.csv` and `leaderboard.md` into a folder, which is made if missing."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("json", to_json(boards)), ("csv", to_csv(boards)), ("md", to_markdown(boards))):
        path = out / f"leaderboard.{name}"
        path.write_text(text, encoding="utf-8", newline="")
        written.append(path)
    return written


def to_json(boards: Iterable[Board]) -> str:
    """Returns all boards as JSON, a line for each row; numbers are rounded to six decimals, never NaN."""
    content = [
        {
            "env": board.env,
            "columns": [dataclasses.asdict(entry) for entry in board.columns],
            "fronts": [dataclasses.asdict(front) for front in board.fronts],
            "rows": [_row(row) for row in board.rows],
        }
        for board in boards
    ]
    return _by_lines({"schema": SCHEMA, "boards": content})


def _row(row: Row) -> dict[str, object]:
    """A row's fields; the metrics' keys are those of `Estimate`, without an empty note."""
    fields = dataclasses.asdict(row)
    fields["metrics"] = {
        name: {key: value for key, value in dataclasses.asdict(estimate).items() if key != "note" or value}
        for name, estimate in row.metrics.items()
    }
    return fields


def _by_lines(value: dict[str, Any]) -> str:
    """JSON with each board's entries on lines of their own, so that two versions can be compared."""
    boards = []
    for board in value["boards"]:
        parts = [f'"env":{_dump(board["env"])}']
        for name in ("columns", "fronts", "rows"):
            lines = ",\n".join(_dump(entry) for entry in board[name])
            parts.append(f'"{name}":[\n{lines}\n]' if lines else f'"{name}":[]')
        boards.append("{" + ",\n".join(parts) + "}")
    return f'{{"schema":{_dump(value["schema"])},"boards":[{",".join(boards)}]}}\n'


def _dump(value: object) -> str:
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: object) -> object:
    """Rounds numbers, turns what JSON cannot say into null, and replaces lone surrogates."""
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def to_csv(boards: Iterable[Board]) -> str:
    """Returns all rows as CSV (RFC 4180, UTF-8), five columns a metric; rows of equal `protocol` are comparable."""
    every = list(boards)
    metrics = list(dict.fromkeys(entry.name for board in every for entry in board.columns))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    heads = [f"{name}{suffix}" for name in metrics for suffix in ("", " low", " high", " n", " note")]
    writer.writerow([_cell(head) for head in (*_FIELDS, *heads)])
    for board in every:
        for row in board.rows:
            values = [value for name in metrics for value in _estimate(row.metrics.get(name))]
            writer.writerow([_cell(value) for value in (*_facts(row), *values)])
    return text.getvalue()


_FIELDS: Final = (
    *("env", "agent", "defences", "mode", "attack", "suite", "run", "date", "pareto", "privileged"),
    *("reference", "partial"),
    *(
        "errors",
        "truncated",
        "content filtered",
        "refusals told by",
        "trained on",
        "hypervolume",
        "USD an episode",
        "tokens an episode",
    ),
    *("seconds an episode", "protocol"),
)


def _facts(row: Row) -> Iterator[object]:
    yield from (row.env, row.agent, " ".join(row.defences), row.mode, row.attack or "", row.suite, row.run_id, row.date)
    yield from (row.on_front, row.privileged, row.reference, row.partial_reason)
    yield "; ".join(f"{name}: {count}" for name, count in row.errors.items())
    yield from (row.truncated, row.content_filtered, "; ".join(row.refusals_by), "; ".join(row.contaminated_by))
    yield from (row.hypervolume, row.cost, row.tokens, row.seconds)
    yield hashlib.sha256(row.protocol.encode(errors="replace")).hexdigest()[:8]


def _estimate(estimate: Estimate | None) -> tuple[object, ...]:
    if estimate is None:
        return (None,) * 5
    return estimate.value, estimate.low, estimate.high, estimate.n, estimate.note


def _cell(value: object) -> str:
    """A cell's text; one that a spreadsheet would take for a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)
    text = _short(str(value))
    # Spreadsheets pass over leading blanks, and the tab and return that `visible` spells out were formulas too.
    return f"'{text}" if str(value).lstrip(" \n").startswith(_FORMULA) else text


def to_markdown(boards: Iterable[Board]) -> str:
    """Returns a table for each board, mode and attack, of the rows over all suites; rates in %, intervals beside."""
    blocks = []
    for board in boards:
        blocks.append(f"## {_escaped(board.env)}")
        rows = [row for row in board.rows if row.suite == "all"]
        for mode, attack in dict.fromkeys((row.mode, row.attack) for row in rows):
            blocks.append(_table(board, mode, [row for row in rows if (row.mode, row.attack) == (mode, attack)]))
    return "\n\n".join([*blocks, _NOTES, ""])


_NOTES: Final = (
    "Rates in %, each with its 95 % interval and n. P: on the Pareto front of security x utility. scripted, ground "
    "truth: the agent follows a script, or is given the solution, and is no competitor. Errors are not scored."
)


def _table(board: Board, mode: str, rows: Sequence[Row]) -> str:
    used = {name for row in rows for name in row.metrics}
    names = [entry.name for entry in board.columns if entry.name in used]
    arrows = {entry.name: {"up": " ↑", "down": " ↓", "": ""}[entry.direction] for entry in board.columns}
    title = f"**{_escaped(mode)}" + (f": {_escaped(rows[0].attack)}**" if rows[0].attack else "**")
    head = ["agent", "P", *(f"{_escaped(name)}{arrows[name]}" for name in names), "errors", "remarks"]
    lines = [title, "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [_escaped(row.name), "P" if row.on_front else ""]
        cells += [_rate(row.metrics.get(name)) for name in names]
        cells += [str(sum(row.errors.values())), _escaped(remarks(row))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def remarks(row: Row) -> str:
    """What a reader must know before comparing a row; "" if nothing."""
    remarks = [f"partial: {row.partial_reason}"] if row.partial else []
    remarks += ["ground truth" if row.privileged else "scripted"] if row.reference else []
    remarks += [f"trained on {', '.join(row.contaminated_by)}"] if row.contaminated_by else []
    remarks += [f"a content filter stopped {row.content_filtered}"] if row.content_filtered else []
    remarks += sorted({estimate.note for estimate in row.metrics.values() if estimate.note})
    return "; ".join(remarks)


def _rate(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f} ({low:.1f} to {high:.1f}; {estimate.n})"


def _escaped(text: object) -> str:
    return _MARKUP.sub(r"\\\1", _short(str(text)))


def _short(text: str) -> str:
    """One line of visible characters, cut where it is long."""
    escaped = visible(text[:_LONGEST]).replace("\n", "\\n").replace("\t", "\\t")
    return escaped if len(text) <= _LONGEST else f"{escaped}… ({len(text)} characters)"
