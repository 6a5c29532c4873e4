"""Whatever a folder holds, reading it ends with a board, a report or one clear error."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import MakeRun, loaded

from fate_gym.cli import main
from fate_gym.errors import FateGymError
from fate_gym.evaluation.run import load_run
from fate_gym.leaderboards import build, compare
from fate_gym.leaderboards.exports import to_csv, to_json, to_markdown
from fate_gym.leaderboards.verification import verify

FILES = ("manifest.json", "episodes.jsonl", "failures.jsonl", "summary.json")
JUNK: list[Any] = [
    None,
    True,
    -1,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "\ud800\u202e\x1b<b>",
    [],
    [[1]],
    {},
    {"x": {}},
]


@pytest.fixture(scope="module")
def toy_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "toy", "oracle", env="toy/Parcels-v0", repeats=2)
    record = json.loads((run / "episodes.jsonl").read_text().splitlines()[0])
    record.update(key="other#0", status="env_error", error="boom")
    (run / "failures.jsonl").write_text(json.dumps(record) + "\n")
    return run


def read_in_every_way(run: Path, honest: Path) -> None:
    """Raises what no user should see."""
    try:
        given = loaded(run)
        boards = build([given])
        json.loads(to_json(boards), parse_constant=lambda name: pytest.fail(f"{name} in leaderboard.json"))
        to_csv(boards).encode()
        to_markdown(boards).encode()
        compare(loaded(honest), given)
    except FateGymError:
        pass
    try:
        report = verify(run).to_json()
        json.dumps(report)
    except FateGymError:
        pass


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of every value inside."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from places(entry)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(FILES), junk=st.sampled_from(JUNK), drop=st.booleans())
def test_any_value_replaced_by_any_other(
    toy_run: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, name: str, junk: Any, drop: bool
) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path_factory.mktemp("junk") / "run"))
    records = [json.loads(line) for line in (run / name).read_text().splitlines()]
    chance = random.Random(seed)
    container, key = chance.choice(list(places(chance.choice(records))))
    if drop:
        del container[key]
    else:
        container[key] = junk
    (run / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    read_in_every_way(run, toy_run)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(FILES))
def test_any_byte_changed(toy_run: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, name: str) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path_factory.mktemp("bytes") / "run"))
    data = bytearray((run / name).read_bytes())
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 1, 20])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    (run / name).write_bytes(data)
    read_in_every_way(run, toy_run)


def as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def as_a_link_out(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere) if path.exists() else elsewhere.write_text("who: me\n")
    path.symlink_to(elsewhere)


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def deep(path: Path) -> None:
    path.write_bytes(b'{"schema": ' + b"[" * 900 + b"]" * 900 + b"}\n" + b"{}\n")


def damaged(path: Path) -> None:
    path.write_bytes(b"\x00\xff\n" * 3)


def newer(path: Path) -> None:
    path.write_text('{"schema": "fate-gym/run/99"}\n' * 2)


WAYS = (as_pipe, as_device, as_a_link_out, as_folder, deep, damaged, newer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*FILES, "submission.yaml"])
def test_a_bad_file_is_named_and_costs_one_run(
    name: str, way: Callable[[Path], None], toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = (Path(shutil.copytree(toy_run, tmp_path / kind)) for kind in ("bad", "good"))
    way(bad / name)
    code = main(["leaderboard", "build", str(bad), str(good), "--out", str(tmp_path / "site")])
    (board,) = json.loads((tmp_path / "site" / "leaderboard.json").read_text())["boards"]
    assert str(toy_run) not in (said := capsys.readouterr().err)
    if name == "failures.jsonl" and way in (deep, newer):
        assert any("malformed" in row["partial_reason"] for row in board["rows"])
    elif name != "summary.json":
        assert code == 1
        assert f"left out {bad}" in said
        assert said.count("\n") == 1
        assert len({row["run_id"] for row in board["rows"]}) == 1
    read_in_every_way(bad, good)
    main(["leaderboard", "verify", str(bad)])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("seed", [1]), ("repeats", 10**9), ("tasks", "x"), ("attack", [3]), ("max_cost", "y")]
)
def test_a_run_of_absurd_settings_is_on_no_board(name: str, value: Any, toy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"][name] = value
    (run / "manifest.json").write_text(json.dumps(manifest) + "\n")
    with pytest.raises(FateGymError, match=rf"manifest.json: config.{name} must be "):
        load_run(run)
    assert [entry.where for entry in verify(run, trusted="parcels").differences] == ["manifest.json"]
