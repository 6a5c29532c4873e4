"""A run that was looked at before it is resumed: what has been read is not read again, and what came since is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_episodes import make_episode

from fate_gym.errors import RunCorruptError
from fate_gym.evaluation import store
from fate_gym.evaluation.run import load_run, run_of
from fate_gym.evaluation.store import RunFolder
from fate_gym.rewards import Verdict

CONFIG = {"agent": "oracle", "env": "toy/Depot-v0", "defences": [], "env_args": {}}
MANIFEST = {"schema": store.SCHEMA, "config": CONFIG, "digest": "d"}


def add(path: Path, *keys: str) -> None:
    with RunFolder.open(path, MANIFEST) as run:
        for key in keys:
            run.append(make_episode(key))


def found(path: Path) -> RunFolder:
    run = RunFolder.find(path, MANIFEST)
    assert run is not None
    return run


def lines_read(path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read = []
    placed = store.placed_records

    def counted(*args: object) -> object:
        for place, record in placed(*args):  # type: ignore[arg-type]
            read.append(place.line)
            yield place, record

    with monkeypatch.context() as patch:
        patch.setattr(store, "placed_records", counted)
        with RunFolder.open(path, MANIFEST, found=run) as opened:
            assert opened.done == {episode.key for episode in RunFolder(path).episodes()}
    return read[: len(read) - len(opened.done)]


def test_what_was_read_before_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "a#0", "b")
    run = found(tmp_path)
    assert lines_read(tmp_path, run, monkeypatch) == []
    add(tmp_path, "c", "a#1")
    assert lines_read(tmp_path, run, monkeypatch) == [3, 4]


def test_what_another_process_was_writing_is_cut_off_and_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "a", "b")
    log = tmp_path / store.EPISODES
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"schema":')
    run = found(tmp_path)
    assert lines_read(tmp_path, run, monkeypatch) == []
    assert log.read_bytes() == whole


@pytest.mark.parametrize("keys", [("b",), ("b", "a", "c", "d")])
def test_another_file_is_read_from_its_beginning(
    tmp_path: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "run", "a", "b", "c")
    run = found(tmp_path / "run")
    add(tmp_path / "other", *keys)
    (tmp_path / "other" / store.EPISODES).replace(tmp_path / "run" / store.EPISODES)
    assert lines_read(tmp_path / "run", run, monkeypatch) == list(range(1, len(keys) + 1))


def test_damage_that_came_since_is_an_error(tmp_path: Path) -> None:
    add(tmp_path, "a", "b")
    run = found(tmp_path)
    log = tmp_path / store.EPISODES
    log.write_bytes(log.read_bytes() + log.read_bytes())
    with pytest.raises(RunCorruptError, match="line 3 repeats key 'a'"):
        RunFolder.open(tmp_path, MANIFEST, found=run)


def test_a_run_read_in_pieces_is_the_run_read_at_once(tmp_path: Path) -> None:
    add(tmp_path, "a", "b#1")
    run = found(tmp_path)
    with RunFolder.open(tmp_path, MANIFEST, found=run) as opened:
        for key in ("b#0", "c", "b#2"):
            opened.append(
                make_episode(key, usage={"cost_usd": 0.1}, suite=key[0], seconds={"total": 0.7, "agent": 0.1})
            )
        opened.append(make_episode("d", status="env_error", verdict=Verdict.unscored("env_error")))
        assert opened.done == {"a", "b#0", "b#1", "b#2", "c"}
        pieces = run_of(opened, planned=[*opened.done, "d", "e"])
    whole = load_run(tmp_path, planned=[*opened.done, "d", "e"])
    assert json.dumps(pieces.summary) == json.dumps(whole.summary)
    assert pieces.summary["episodes"] == {"planned": 7, "scored": 5, "errors": 1, "missing": 1}
    assert list(pieces.episodes) == list(whole.episodes)
    assert pieces.failures.keys == whole.failures.keys == ("d",)


def test_what_could_not_be_read_is_read_again_from_the_beginning(tmp_path: Path) -> None:
    add(tmp_path, "a", "b")
    log = tmp_path / store.EPISODES
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"seed":0', b'"seed":-1'))
    run = RunFolder(tmp_path)
    for _ in range(2):
        with pytest.raises(RunCorruptError, match=r"line 1: seed must lie between"):
            _ = run.done
    log.write_bytes(whole)
    assert run.done == {"a", "b"}
