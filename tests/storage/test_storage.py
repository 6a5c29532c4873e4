"""The storage layer: whatever a file holds and whatever the disk does, the outcome is a value or one clear error."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.errors import DiskError, RunCorruptError, RunError, RunLockedError, RunMismatchError
from fate_gym.storage import (
    MAX_DEPTH,
    AppendLog,
    Fields,
    WriterLock,
    check_same_settings,
    digest,
    dump,
    encode_line,
    make_folder,
    parse,
    read_file,
    read_object,
    records,
    replace_file,
    sync_tree,
)
from fate_gym.storage._json import check_depth

SCHEMA = "fate-gym/thing/3"
DAMAGE = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "cut": b'{"schema":"fate-gym/th',
    "list": b"[]\n",
    "number": b"7",
    "two objects": b"{}\n{}\n",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "NaN": b'{"x":NaN}',
    "key twice": b'{"x":1,"x":2}',
    "long integer": b'{"x":1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_object_is_one_error_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(RunCorruptError, match=r"thing\.json is not a JSON object"):
        read_object(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    problem = str(path)
    try:
        read_object(path)
    except RunCorruptError as error:
        problem = str(error)
    assert str(path) in problem


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ("fate-gym/thing/4", RunError),
        ("fate-gym/other/3", RunCorruptError),
        ("fate-gym/thing/x", RunCorruptError),
        ("fate-gym/thing/" + "9" * 5000, RunCorruptError),
        (None, RunCorruptError),
        ([], RunCorruptError),
    ],
)
def test_another_schema_is_refused(tmp_path: Path, schema: Any, error: type[RunError]) -> None:
    (tmp_path / "thing.json").write_bytes(encode_line({"schema": schema}))
    with pytest.raises(error, match="schema"):
        read_object(tmp_path / "thing.json", SCHEMA)


def test_an_older_schema_is_read(tmp_path: Path) -> None:
    (tmp_path / "thing.json").write_bytes(b'{"schema": "fate-gym/thing/1"}')
    assert read_object(tmp_path / "thing.json", SCHEMA).text("schema") == "fate-gym/thing/1"


VALUES: list[Any] = [None, True, 0, -1.5, 10**400, 2**63, "text", [], [5], {}, {"a": 5}]
READERS = {
    "text": ["text"],
    "text_or_none": [None, "text"],
    "integer": [0],
    "number": [0, -1.5, 2**63],
    "flag": [True],
    "items": [[], [5]],
    "texts": [[]],
    "text_mapping": [{}],
    "number_mapping": [{}, {"a": 5}],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_field_has_its_type_or_is_named(reader: str) -> None:
    for value in VALUES:
        outer = Fields({"outer": {"x": value}}, "f.jsonl, line 7").object("outer")
        if any(type(value) is type(good) and value == good for good in READERS[reader]):
            assert getattr(outer, reader)("x") == value
        else:
            with pytest.raises(RunCorruptError, match=r"f\.jsonl, line 7: outer\.x.* must be "):
                getattr(outer, reader)("x")
    with pytest.raises(RunCorruptError, match=r"outer\.y is missing"):
        getattr(outer, reader)("y")


def test_entries_of_lists_are_named_by_their_index() -> None:
    fields = Fields({"calls": [{"id": "a"}, {"id": 5}], "names": ["a", None]}, "f")
    first, second = fields.objects("calls")
    assert first.text("id") == "a"
    with pytest.raises(RunCorruptError, match=r"f: calls\.1\.id must be a string, not an integer"):
        second.text("id")
    with pytest.raises(RunCorruptError, match=r"f: names\.1 must be a string, not null"):
        fields.texts("names")
    with pytest.raises(RunCorruptError, match="names is not a field that belongs here"):
        fields.only({"calls"})


def test_a_name_as_long_as_a_file_is_not_repeated() -> None:
    with pytest.raises(RunCorruptError, match=r"here: x{200}\.\.\. is not a field") as error:
        Fields({"x" * 10_000: 1}, "here").only(set())
    assert len(str(error.value)) < 300


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "zero", "folder"):
        with pytest.raises(RunError, match=name):
            read_object(tmp_path / name)
        with pytest.raises(RunError, match=name):
            list(records(tmp_path / name))
        with pytest.raises(RunError, match=name):
            AppendLog(tmp_path / name)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 101)
    assert len(read_file(tmp_path / "large", 101)) == 101
    with pytest.raises(RunCorruptError, match="more than 100 bytes"):
        read_file(tmp_path / "large", 100)


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_replacement_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    path = tmp_path / "thing.json"
    replace_file(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "open", refuse)
        else:
            patch.setattr(os, step, refuse)
        with pytest.raises(DiskError, match=rf"thing\.json could not be written: {os.strerror(code)}"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing.json"]


def test_files_and_their_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    make_folder(tmp_path / "a" / "b")
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a")]
    synced.clear()
    replace_file(tmp_path / "a" / "file", b"x")
    assert synced == [(tmp_path / "a" / "file").stat().st_ino, (tmp_path / "a").stat().st_ino]
    synced.clear()
    log = AppendLog(tmp_path / "log")
    log.append(b"{}\n")
    log.close()
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "log").stat().st_ino]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        replace_file(tmp_path / "gone" / "file", b"x")
    assert not (tmp_path / "gone").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="could not be written"):
        make_folder(tmp_path / "file" / "below")


def test_a_tree_that_others_wrote_is_synced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("os.fsync", fsync)
    sync_tree(tmp_path)
    assert set(synced) == {str(tmp_path / name) for name in ("x", "a/y", "a/b/z", "a/b", "a", "")}

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(DiskError, match="could not be written: Input/output error"):
        sync_tree(tmp_path)


ONE, TWO, THREE = (b'{"n":%d}\n' % n for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "could not be written: No such file"),
        (b'{"n":7}\n', "was replaced"),
        (ONE + TWO + b'{"n":9}\n', "was replaced"),
        ("folder", "could not be written: Is a directory"),
        ("fifo", "was replaced"),
    ],
)
def test_a_log_that_was_removed_or_whose_name_holds_something_else_stops_its_writer(
    tmp_path: Path, content: bytes | str | None, error: str
) -> None:
    path = tmp_path / "log"
    log = AppendLog(path)
    log.append(ONE)
    log.append(TWO)
    path.rename(tmp_path / "old")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir() if content == "folder" else os.mkfifo(path)
    with pytest.raises(DiskError, match=error):
        log.append(THREE)
    log.close()
    assert (tmp_path / "old").read_bytes() == ONE + TWO
    assert not isinstance(content, bytes) or path.read_bytes() == content


@pytest.mark.parametrize("content", [ONE + TWO, ONE, ONE[:3], b""])
def test_a_log_goes_on_in_a_copy_that_has_taken_its_place(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fate_gym.storage._log._PIECE", 5)
    path = tmp_path / "log"
    log = AppendLog(path)
    log.append(ONE)
    log.append(TWO)
    path.rename(tmp_path / "old")
    path.write_bytes(content)
    log.append(THREE)
    log.check()
    log.close()
    assert path.read_bytes() == ONE + TWO + THREE


def test_a_log_waits_for_the_copy_that_an_editor_is_about_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = AppendLog(path)
    log.append(ONE)
    path.rename(tmp_path / "old")
    monkeypatch.setattr("time.sleep", lambda seconds: path.write_bytes(ONE))
    log.append(TWO)
    log.close()
    assert path.read_bytes() == ONE + TWO


@pytest.mark.parametrize("content", [b"", ONE, ONE + TWO + THREE])
def test_a_log_that_another_program_writes_stops_its_writer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    log = AppendLog(path)
    log.append(ONE)
    log.append(TWO)
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)
    with pytest.raises(DiskError, match="was changed by another program"):
        log.append(THREE)
    log.close()
    assert path.read_bytes() == content


def test_a_record_that_no_reader_would_take_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fate_gym.storage._log.MAX_LINE", 10)
    log = AppendLog(tmp_path / "log")
    log.append(ONE)
    with pytest.raises(ValueError, match="longer than 10"):
        log.append(TWO, b'{"n":%d}\n' % 10**9)
    log.append(TWO, THREE)  # Each is short enough, though both together are not.
    log.close()
    assert (tmp_path / "log").read_bytes() == ONE + TWO + THREE


@pytest.mark.parametrize("innermost", [1, {}, []])
@pytest.mark.parametrize("depth", range(MAX_DEPTH - 3, MAX_DEPTH + 3))
def test_what_is_written_is_as_deep_as_what_is_read(depth: int, innermost: Any) -> None:
    value = innermost
    for level in range(depth):
        value = {"a": value} if level % 2 or level == depth - 1 else [value]
    try:
        check_depth(value)
    except ValueError:
        with pytest.raises(ValueError, match="nested deeper than 200"):
            dump(value)
    else:
        assert parse(encode_line(value)) == value


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with WriterLock(tmp_path), pytest.raises(RunLockedError, match="another process"):
        WriterLock(tmp_path)
    WriterLock(tmp_path).release()


def test_differing_settings_are_listed_with_both_values() -> None:
    stored = {"a": 1, "b": {"c": [1], "d": "x" * 1000}, "limit": 5}
    check_same_settings("here is a run", stored, {**stored, "limit": 6}, may_change={"limit"})
    with pytest.raises(RunMismatchError) as caught:
        check_same_settings("here is a run", stored, {"a": 2, "b": {"c": [1]}, "limit": 5})
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["here is a run of other settings:", "  a: stored 1, given 2"]
    assert lines[2].startswith("  b.d: stored ")
    assert len(lines[2]) < 300
    assert lines[3:] == ["Give another --out, or the same settings to resume it"]


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": (2,), "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_lines_are_read_back() -> None:
    assert parse(encode_line({"a": [1, 2.5, None, "\u2028"]})) == {"a": [1, 2.5, None, "\u2028"]}
