"""The overlap scan: what it finds, where, and what it leaves alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.errors import UsageError
from fate_gym.overlap import Overlap, Passage, Record, find_overlap, read_passages, task_records

PROMPT = "Please find the blue kite that the harbour master lost near the old lighthouse last Sunday afternoon."
CANARY = "CANARY-0000-shop"
RECORD = Record("shop/kite", PROMPT, CANARY)


def found(path: Path, *records: Record) -> list[Overlap]:
    return list(find_overlap(read_passages(path), records or (RECORD,)))


def test_a_prompt_inside_any_string_of_a_record_is_found_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"text": "nothing"}, {"messages": [{"content": ["Hello.\n", {"text": f"User:\n{PROMPT}\nAssistant:"}]}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert found(path) == [Overlap("shop/kite", str(path), 2, 1.0)]


def test_case_punctuation_and_line_breaks_do_not_hide_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("A diary.\n\n" + PROMPT.upper().replace(" ", " \n- ") + "\n")
    (overlap,) = found(path)
    assert (overlap.task_id, overlap.line, overlap.share) == ("shop/kite", 3, 1.0)


def test_a_part_is_found_with_its_share(tmp_path: Path) -> None:
    path = tmp_path / "part.txt"
    path.write_text(" ".join(PROMPT.split()[3:12]))
    (overlap,) = found(path)
    grams = len(PROMPT.split()) - 7
    assert overlap.share == pytest.approx(2 / grams)


def test_seven_words_in_a_row_are_no_overlap(tmp_path: Path) -> None:
    path = tmp_path / "part.txt"
    path.write_text(" ".join(PROMPT.split()[3:10]) + " and then something else entirely")
    assert found(path) == []


def test_a_short_prompt_is_one_gram(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("He said: fly the kite!")
    assert [overlap.share for overlap in found(path, Record("shop/fly", "Fly the kite"), Record("shop/empty", ""))] == [
        1
    ]


@pytest.mark.parametrize("text", [f"x {CANARY} y", CANARY.lower()])
def test_a_canary_is_found_once_for_all_tasks(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"first\n{text}")
    overlaps = found(path, RECORD, Record("shop/other", "unlike", CANARY))
    assert overlaps == [Overlap(None, str(path), 2, 1.0)]


def test_the_template_of_a_benchmark_is_no_overlap(tmp_path: Path) -> None:
    template = "Use the tools that you are given and answer in one short sentence: "
    names = ["anchor", "barrel", "candle", "dinghy", "engine", "fender", "gangway", "hammock"]
    records = [Record(name, f"{template}{' '.join([name] * 3)} {index}") for index, name in enumerate(names)]
    path = tmp_path / "train.txt"
    path.write_text(template)
    assert found(path, *records) == []
    assert found(path, *records[:7]) != [], "too few tasks to tell a template"
    path.write_text(records[3].text)
    assert [overlap.task_id for overlap in found(path, *records)] == ["dinghy"]


def test_a_line_that_is_no_json_is_text(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text('{"a": "fine"}\n{"a": "' + PROMPT)
    assert [overlap.line for overlap in found(path)] == [2]


def test_json_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"a": PROMPT.replace(" ", "\n")}], indent=2))
    assert [overlap.line for overlap in found(path)] == [1]
    path.write_text("\n{" + PROMPT)
    assert [overlap.line for overlap in found(path)] == [2]


def test_run_folders_are_read_and_other_folders_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without manifest.json, so no run: name its files"):
        found(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "episodes.jsonl").write_text(json.dumps({"messages": [{"content": PROMPT}]}))
    assert [overlap.source for overlap in found(tmp_path)] == [str(tmp_path / "episodes.jsonl")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing.jsonl cannot be read: No such file"):
        found(tmp_path / "nothing.jsonl")


def test_bytes_that_are_no_text_do_not_stop_the_scan(tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(b"\xff\x00\n" + PROMPT.encode() + b"\xfe")
    assert [overlap.line for overlap in found(path)] == [2]


def test_records_of_a_benchmark_hold_what_its_tasks_show() -> None:
    records = list(task_records(gym.make("toy/Parcels-v0").unwrapped.benchmark))  # type: ignore[attr-defined]
    assert [record.task_id for record in records] == ["shop/ship", "shop/ship-attacked", "shop/smuggle"]
    assert {record.text for record in records} == {"Ship parcel 1."}


@given(st.integers(8, 30), st.integers(0, 20), st.integers(0, 20), st.randoms(use_true_random=False))
def test_a_copy_is_always_found_whole_wherever_it_stands(
    size: int, before: int, after: int, rng: random.Random
) -> None:
    words = [f"w{rng.randrange(1000)}" for _ in range(size)]
    around = [[f"x{rng.randrange(1000)}" for _ in range(length)] for length in (before, after)]
    passage = Passage("a", 1, " ".join([*around[0], *words, *around[1]]), one_record=True)
    (overlap,) = find_overlap([passage], [Record("t", "  ".join(words).title())])
    assert overlap == Overlap("t", "a", 1, 1.0)
