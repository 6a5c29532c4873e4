"""A run that was looked at before it is resumed: what has been read is not read again, and what came since is."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_episodes import make_episode

from fate_gym.errors import RunCorruptError
from fate_gym.evaluation import store
from fate_gym.evaluation.store import RunFolder

MANIFEST = {"schema": store.SCHEMA, "config": {}, "digest": "d"}


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
