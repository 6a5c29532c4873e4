"""What machines and other documents get: whole, safe for a spreadsheet, and without markup of strangers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import loaded

from fate_gym.leaderboards import Board, Estimate, build
from fate_gym.leaderboards.exports import remarks, to_csv, to_json, to_markdown, write_exports

HOSTILE = [
    "=HYPERLINK(0)",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    "a,b\"c'",
    "line\nbreak\r\n",
    "| pipe | `code` *star* _low_ [x](javascript:alert(1)) <b>&amp;</b> # ~ !",
    "\u202egnp\u0000\x1b[31m\ud800",
    "</script><svg onload=alert(1)>",
]


@pytest.fixture(scope="module")
def board(dojo_run: Path) -> Board:
    (made,) = build([loaded(dojo_run)])
    return made


def named(board: Board, name: str) -> Board:
    rows = [dataclasses.replace(row, agent=name, attack=name, suite="all") for row in board.rows[:1]]
    return dataclasses.replace(board, env=name, rows=tuple(rows), fronts=())


def cells(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_json_has_the_rows_as_they_are(board: Board) -> None:
    data = json.loads(to_json([board]))
    assert data["schema"] == "fate-gym/leaderboard/1"
    (shown,) = data["boards"]
    assert shown["env"] == board.env
    assert [entry["name"] for entry in shown["columns"]] == [entry.name for entry in board.columns]
    for row, mine in zip(shown["rows"], board.rows, strict=True):
        assert (row["agent"], row["suite"], row["partial"]) == (mine.agent, mine.suite, mine.partial)
        assert set(row["metrics"]) == set(mine.metrics)
        for name, estimate in row["metrics"].items():
            assert estimate["n"] == mine.metrics[name].n
            assert estimate["value"] == pytest.approx(mine.metrics[name].value, abs=1e-6)
    assert json.loads(to_json([])) == {"schema": "fate-gym/leaderboard/1", "boards": []}


def test_json_never_says_nan(board: Board) -> None:
    row = dataclasses.replace(board.rows[0], metrics={"x": Estimate(math.nan, math.inf, None, 0)}, cost=math.nan)
    text = to_json([dataclasses.replace(board, rows=(row,))])
    (shown,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))["boards"][0]["rows"]
    assert shown["metrics"]["x"] == {"value": None, "low": None, "high": None, "n": 0}
    assert shown["cost"] is None


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str, board: Board) -> None:
    made = named(board, name)
    (row,) = cells(to_csv([made]))
    assert not row["agent"].lstrip().startswith(("=", "+", "-", "@"))
    assert not re.search(r"[\x00-\x1f\u202e\ud800]", row["agent"])
    assert row["ASR n"] == str(made.rows[0].metrics["ASR"].n)
    text = to_markdown([made])
    text.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    (line,) = (line for line in text.splitlines() if "to " in line and line.startswith("|"))
    head = next(line for line in text.splitlines() if line.startswith("| agent"))
    pipes = re.compile(r"(?<!\\)\|")
    assert len(pipes.findall(line)) == len(pipes.findall(head))
    assert not re.search(r"(?<!\\)[<*`\[]", line.split("|", 2)[1])
    assert json.loads(to_json([made]))["boards"][0]["rows"][0]["attack"]


@given(st.text(max_size=40))
def test_any_name_makes_one_row_of_csv_and_no_formula(board: Board, name: str) -> None:
    (row,) = cells(to_csv([named(board, name)]))
    assert len(row) == len(next(csv.reader([to_csv([board]).split("\r\n")[0]])))
    assert not row["agent"].strip().startswith(("=", "+", "-", "@", "\t", "\r"))
    to_json([named(board, name)])


def test_long_names_are_cut_with_a_count(board: Board) -> None:
    text = to_csv([named(board, "x" * 5_000_000)])
    assert len(text) < 20_000
    assert "(5000000 characters)" in text


def test_markdown_has_a_table_for_each_attack(board: Board) -> None:
    text = to_markdown([board])
    assert text.count("| agent | P |") == 1
    assert "**attacked: important\\_instructions**" in text
    assert "ground truth" in text
    assert "ASR ↓" in text
    empty = dataclasses.replace(board.rows[0], metrics={"ASR": Estimate(None, None, None, 0)})
    assert "| - |" in to_markdown([dataclasses.replace(board, rows=(empty,))])


def test_a_row_without_a_metric_has_empty_cells(board: Board) -> None:
    row = dataclasses.replace(board.rows[0], metrics={"ASR": Estimate(0.5, 0.25, 0.75, 4)})
    (shown,) = cells(to_csv([dataclasses.replace(board, rows=(row,))]))
    assert (shown["ASR"], shown["ASR low"], shown["ASR n"], shown["TSR"], shown["TSR n"]) == (
        "0.5",
        "0.25",
        "4",
        "",
        "",
    )


def test_remarks_say_what_a_row_lacks(board: Board) -> None:
    row = dataclasses.replace(
        board.rows[0], partial=True, partial_reason="half", contaminated_by=("x",), privileged=False, reference=False
    )
    assert remarks(row) == "partial: half; trained on x; n too small to say"


def test_files_are_written(board: Board, tmp_path: Path) -> None:
    written = write_exports([board], tmp_path / "new" / "site")
    assert [path.name for path in written] == ["leaderboard.json", "leaderboard.csv", "leaderboard.md"]
    assert written[0].read_text() == to_json([board])
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_exports([board], tmp_path / "new" / "site")] == first
