"""Lines: read as JSON says, from any place on, and mended from the end of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.storage import AppendLog, parse, placed_records, replacing

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children, max_size=4),
    max_leaves=20,
)
WRITERS = (
    lambda value: json.dumps(value, separators=(",", ":")),
    lambda value: json.dumps(value, ensure_ascii=False, indent=None),
)


@given(st.dictionaries(st.text(max_size=5), VALUES), st.sampled_from(WRITERS))
def test_a_line_is_read_as_json_reads_it(value: dict[str, Any], write: Any) -> None:
    text = write(value)
    read = parse(text.encode(errors="surrogatepass").decode(errors="replace").encode() + b"\n")
    expected = json.loads(text.encode(errors="surrogatepass").decode(errors="replace"))
    # As text, since -0.0 equals 0 and 1 equals True.
    assert repr(read) == repr(expected)


@pytest.mark.parametrize("number", ["-0", "-0.0", "1e400", "5e-324", "1" * 4000, "0.1", "1E5", "9223372036854775808"])
def test_a_number_is_read_as_json_reads_it(number: str) -> None:
    assert repr(parse(b'{"x":%s}\n' % number.encode())) == repr(json.loads(f'{{"x":{number}}}'))


def test_the_lone_surrogates_of_others_files_are_read() -> None:
    assert parse(b'{"x":"\\ud800","y":"\\ud83d\\ude00"}\n') == {"x": "\ud800", "y": "\U0001f600"}


LINES = [b'{"a":1}\n', b'{"bb":22}\n', b'{"c":""}\n']


@pytest.mark.parametrize("read", range(len(LINES) + 1))
def test_records_are_read_from_any_place_on(tmp_path: Path, read: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(LINES))
    every = list(placed_records(path))
    assert [path.read_bytes()[place.start : place.end] for place, _ in every] == LINES
    assert list(placed_records(path, *(every[read - 1][:1] if read else ()))) == every[read:]


@pytest.mark.parametrize("piece", [1, 2, 5, 9, 100])
@pytest.mark.parametrize("whole", range(len(LINES) + 1))
@pytest.mark.parametrize("torn", [b"", b"{", b'{"d":1}', b"\n", b"[]\n", b"\0" * 12, b'{"x":NaN}\n'])
def test_what_a_kill_left_of_the_last_line_is_cut_off(
    tmp_path: Path, piece: int, whole: int, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fate_gym.storage._log._PIECE", piece)
    path = tmp_path / "log"
    path.write_bytes(b"".join(LINES[:whole]) + torn)
    AppendLog(path).close()
    # What no kill leaves stays for the reader, which names its line.
    kept = torn if b"NaN" in torn else b""
    assert path.read_bytes() == b"".join(LINES[:whole]) + kept


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"ne")
        file.write(b"w")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
