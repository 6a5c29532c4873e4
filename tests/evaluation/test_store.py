"""The run folder: what is written can be read, whatever kills the writer, fills the disk or mistakes the folder."""

import errno
import json
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small_episodes
from hypothesis import given
from hypothesis import strategies as st
from small_episodes import make_episode

import fate_gym
from fate_gym.episode import Episode
from fate_gym.errors import DiskError, FateGymError, RunCorruptError, RunError, RunLockedError, RunMismatchError
from fate_gym.evaluation import store
from fate_gym.evaluation.store import RunFolder
from fate_gym.storage import MAX_DEPTH, digest, encode_line

CONFIG = {"env": "fate/AgentDojo-v0", "agent": {"name": "oracle", "temperature": 0.0}, "seed": 0, "limit": 5}
MANIFEST = {
    "schema": store.SCHEMA,
    "config": CONFIG,
    "digest": digest({**CONFIG, "limit": None}),
    "versions": {"fate-gym": "0.1.0"},
}
PACKAGE = Path(fate_gym.__file__).parent
SUPPORT = Path(small_episodes.__file__).parent

# A writer in a process of its own: keys 0, 1, ... in order, 200 kB each; at most `most` new ones.
# The bare packages keep twenty starts from importing what the store does not need. A disk that takes a long line in
# pieces, as one under load does, lets kills strike inside of it.
WRITER = """
import os, signal, sys, time, types
for name, folder in ("fate_gym", ""), ("fate_gym.evaluation", "/evaluation"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + folder]
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from small_episodes import make_episode
from fate_gym.evaluation.store import SCHEMA, RunFolder

def slow_write(fd, data, write=os.write):
    if len(data) > 50_000:
        time.sleep(0.003)
    return write(fd, data[:50_000])

os.write = slow_write
path, total, most = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with RunFolder.open(path, {"schema": SCHEMA, "config": {}, "digest": "d"}) as run:
    print("ready", flush=True)
    missing = [i for i in range(total) if str(i) not in run.done]
    for i in missing[:most]:
        run.append(make_episode(str(i), error=str(i % 10) * 200_000))
    if most < total:
        signal.pause()
"""


def start_writer(path: Path, total: int, most: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", WRITER, str(PACKAGE), str(path), str(total), str(most), str(SUPPORT)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE)


def wait_for_size(path: Path, growth: int, process: subprocess.Popen[bytes]) -> None:
    wanted = path.stat().st_size + growth
    while path.stat().st_size < wanted and process.poll() is None:
        time.sleep(0.0005)


@contextmanager
def finished(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def record(key: str, **metadata: Any) -> Episode:
    return make_episode(key, metadata=metadata)


def errored(key: str, **metadata: Any) -> Episode:
    return make_episode(key, status="provider_error", error="no line", metadata=metadata)


def keys(run: RunFolder) -> list[str]:
    return [episode.key for episode in run.episodes()]


def written(path: Path, *names: str) -> Path:
    """A closed run with these episodes."""
    with RunFolder.open(path, MANIFEST) as run:
        for name in names:
            run.append(record(name, reward=[1.0, 0.5]))
    return path / "episodes.jsonl"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out fsync, where a test opens hundreds of runs and the machine keeps its power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


# What is written can be read


def test_a_run_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with RunFolder.open(path, MANIFEST) as run:
        run.append(record("a", reward=[1.0, 0.5]))
        run.append(errored("b"))
        run.append(errored("b"))
        run.write_summary({"asr": 0.5})
        run.write_summary({"asr": 0.25})
        assert run.done == {"a"}
    run = RunFolder.read(path)
    assert run.manifest == MANIFEST
    assert run.done == {"a"}
    assert list(run.episodes()) == [record("a", reward=[1.0, 0.5])]
    assert list(run.failures()) == [errored("b")] * 2
    assert run.summary() == {"asr": 0.25}
    assert not list(path.glob("*.tmp"))


def test_lines_are_compact_ascii_with_keys_in_their_order(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a", z="é\u2028\x85\x7f", b=None))
    line = (tmp_path / "episodes.jsonl").read_bytes()
    assert b'"metadata":{"z":"\\u00e9\\u2028\\u0085\x7f","b":null}' in line
    assert line.startswith(b'{"schema":"fate-gym/episode/1","key":"a",')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud83d", "\ufffd"),
        ("a\udc00\ud800b", "a\ufffd\ufffdb"),
        ("\ud83d\ude00", "😀"),
        ("\\ud83d", "\\ud83d"),
    ],
)
def test_lone_surrogates_are_replaced(tmp_path: Path, text: str, expected: str) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a", **{text: text}))
        assert list(run.episodes()) == [record("a", **{expected: expected})]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
halves = st.sampled_from(["\ud83d", "\ude00", "\udfff", "\n", "\r", "\u2028", "\0", '"', "\\", "\\ud800"])
texts = st.lists(st.text(max_size=5) | halves, max_size=6).map("".join)
values = st.recursive(
    scalars | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
)


def repaired(value: Any) -> Any:
    """What a strict reader is to see: halves joined, lone ones replaced."""
    if isinstance(value, str):
        pairs = re.compile("[\ud800-\udbff][\udc00-\udfff]")
        joined = pairs.sub(lambda m: chr(0x10000 + ((ord(m[0][0]) - 0xD800) << 10) + ord(m[0][1]) - 0xDC00), value)
        return re.sub("[\ud800-\udfff]", "\ufffd", joined)
    if isinstance(value, list):
        return [repaired(item) for item in value]
    return {key: repaired(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.usefixtures("quick")
def test_any_content_round_trips(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        expected: list[Any] = []

        @given(values)
        def write(value: Any) -> None:
            run.append(record(str(len(expected)), value=value))
            expected.append(repaired(value))

        write()
        assert len(expected) >= 50
        assert [episode.metadata["value"] for episode in run.episodes()] == expected
    data = (tmp_path / "episodes.jsonl").read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == len(expected)


deep: list[Any] = []
for _ in range(MAX_DEPTH):
    deep = [deep]


@pytest.mark.parametrize(
    "bad",
    [
        record("x", value=float("nan")),
        record("x", value=float("inf")),
        record("x", value=10**5000),
        record("x", value=deep),
        record("\ud800"),
        record("a"),
    ],
    ids=["nan", "infinity", "integer", "depth", "key surrogate", "key twice"],
)
def test_what_could_not_be_read_back_is_refused(tmp_path: Path, bad: Episode) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"))
        with pytest.raises(ValueError, match=r"."):
            run.append(bad)
        run.append(record("b"))
    assert keys(RunFolder.read(tmp_path)) == ["a", "b"]


def test_nesting_beyond_the_parsers_is_a_value_error(tmp_path: Path) -> None:
    deeper: list[Any] = []
    for _ in range(100_000):
        deeper = [deeper]
    with RunFolder.open(tmp_path, MANIFEST) as run, pytest.raises(ValueError, match="nested deeper than 200"):
        run.append(record("a", value=deeper))


def test_several_are_added_or_none(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"), errored("b"), record("c"))
        run.append()
        for batch in ([record("d"), record("a")], [record("d"), record("d")], [record("d"), record("e\ud800")]):
            with pytest.raises(ValueError, match=r"already there|valid Unicode"):
                run.append(*batch)
        run.append(record("d"))
    assert keys(RunFolder.read(tmp_path)) == ["a", "c", "d"]
    assert [episode.key for episode in RunFolder.read(tmp_path).failures()] == ["b"]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:

        def work(worker: int) -> None:
            for i in range(20):
                run.append(record(f"{worker}-{i}", text="x" * (worker * 20_000)))

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(keys(RunFolder.read(tmp_path))) == sorted(f"{w}-{i}" for w in range(8) for i in range(20))


def test_only_one_of_many_threads_may_write_a_key(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        refused = []

        def work() -> None:
            try:
                run.append(record("same"))
            except ValueError as error:
                refused.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 7
    assert keys(RunFolder.read(tmp_path)) == ["same"]


# Killed at any byte


def test_a_writer_killed_ten_times_loses_and_repeats_nothing(tmp_path: Path) -> None:
    moments, total, kept, torn = random.Random(5), 150, set[str](), 0
    for number in range(10):
        process = start_writer(tmp_path / "run", total, most=7)
        with finished(process):
            if number % 4:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                # By what is written, not by time: on a busy machine a writer may get nowhere in any time.
                wait_for_size(tmp_path / "run" / "episodes.jsonl", moments.randint(0, 1_000_000), process)
            else:  # anywhere from its very start
                time.sleep(moments.uniform(0, 0.3))
        assert process.returncode == -9
        if (tmp_path / "run" / "manifest.json").exists():
            now = RunFolder.read(tmp_path / "run").done
            assert kept <= now
            kept = now
            episodes = tmp_path / "run" / "episodes.jsonl"
            torn += episodes.exists() and episodes.read_bytes()[-1:] not in (b"", b"\n")
    assert 0 < len(kept) < total
    assert torn > 0, "no kill struck inside a line, so that this test proves little"
    process = start_writer(tmp_path / "run", total, most=total)
    with finished(process):
        assert process.wait(60) == 0
    lines = (tmp_path / "run" / "episodes.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert sorted(int(json.loads(line)["key"]) for line in lines) == list(range(total))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["episodes.jsonl", "failures.jsonl"])
def test_a_file_cut_at_any_byte_goes_on_with_whole_records(tmp_path: Path, name: str) -> None:
    make = record if name == "episodes.jsonl" else errored
    with RunFolder.open(tmp_path, MANIFEST) as run:
        for i in range(3):
            run.append(make(str(i), text="}\n{"))
    whole = (tmp_path / name).read_bytes()
    # Every byte of the last record and of the end before it; the first two records are as it is.
    for offset in [*range(0, whole.rindex(b"\n", 0, -1), 40), *range(whole.rindex(b"\n", 0, -1) - 1, len(whole) + 1)]:
        (tmp_path / name).write_bytes(whole[:offset])
        kept = [str(i) for i in range(whole[:offset].count(b"\n"))]
        torn = RunFolder.read(tmp_path)
        assert [r.key for r in (torn.episodes() if name == "episodes.jsonl" else torn.failures())] == kept
        assert (tmp_path / name).read_bytes() == whole[:offset], "a reader changed the file"
        with RunFolder.open(tmp_path, MANIFEST) as run:
            assert run.done == (set(kept) if name == "episodes.jsonl" else set())
            run.append(make("new"))
        lines = (tmp_path / name).read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert [json.loads(line)["key"] for line in lines] == [*kept, "new"]


@pytest.mark.parametrize("tail", [b"\0\0\0\0\n", b'{"key":"b"\n', b"\xff\xfe\n", b"7\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    episodes = written(tmp_path, "a")
    with episodes.open("ab") as file:
        file.write(tail)
    assert keys(RunFolder.read(tmp_path)) == ["a"]
    written(tmp_path, "c")
    assert keys(RunFolder.read(tmp_path)) == ["a", "c"]


@pytest.mark.parametrize("tail", [b'{"key":"b","seed":NaN}\n', b'{"key":"b","key":"b"}\n'])
def test_a_last_line_that_no_crash_leaves_is_refused(tmp_path: Path, tail: bytes) -> None:
    episodes = written(tmp_path, "a")
    with episodes.open("ab") as file:
        file.write(tail)
    whole = episodes.read_bytes()
    with pytest.raises(RunCorruptError, match="line 2"):
        keys(RunFolder.read(tmp_path))
    with pytest.raises(RunCorruptError, match="line 2"):
        RunFolder.open(tmp_path, MANIFEST)
    assert episodes.read_bytes() == whole


@pytest.mark.parametrize(("name", "episode"), [("episodes.jsonl", errored("b")), ("failures.jsonl", record("b"))])
def test_an_episode_in_the_file_of_the_others_is_refused(tmp_path: Path, name: str, episode: Episode) -> None:
    """A run of a stranger's: what errored would be counted as scored, and looked for where it is not."""
    written(tmp_path, "a")
    with (tmp_path / name).open("ab") as file:
        file.write(encode_line(episode.to_json()))
    with pytest.raises(RunCorruptError, match=rf"{name}, line \d: b has status '{episode.status}', it belongs in"):
        [*RunFolder(tmp_path).episodes(), *RunFolder(tmp_path).failures()]
    problems: list[RunError] = []
    run = RunFolder(tmp_path)
    assert [each.key for each in (*run.episodes(problems.append), *run.failures(problems.append))] == ["a"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"key":"b"', "is not a JSON object"),
        (b"", "is not a JSON object"),
        (b'["key"]', "is not a JSON object"),
        (b'{"status":"ok"}', "has no key"),
        (b'{"key":"a"}', "repeats key 'a'"),
    ],
)
def test_damage_in_the_middle_is_an_error_not_a_gap(tmp_path: Path, line: bytes, what: str) -> None:
    episodes = written(tmp_path, "a", "b", "c")
    lines = episodes.read_bytes().split(b"\n")
    lines[1] = line
    episodes.write_bytes(b"\n".join(lines))
    for use in (RunFolder.read, lambda path: RunFolder.open(path, MANIFEST)):
        with pytest.raises(RunCorruptError, match=rf"episodes\.jsonl, line 2 {what}: .* delete that line and resume"):
            use(tmp_path)
    assert episodes.read_bytes() == b"\n".join(lines)
    del lines[1]
    episodes.write_bytes(b"\n".join(lines))
    written(tmp_path, "b")
    assert keys(RunFolder.read(tmp_path)) == ["a", "c", "b"]


@pytest.mark.parametrize("left", [[], [".fate-gym.lock"], [".fate-gym.lock", "manifest.json.tmp"]])
def test_a_kill_before_the_manifest_leaves_a_folder_that_opens(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text('{"conf')
    written(tmp_path, "a")
    assert RunFolder.read(tmp_path).manifest["config"] == CONFIG
    assert not list(tmp_path.glob("*.tmp"))


def test_a_kill_right_after_the_manifest_leaves_an_empty_run(tmp_path: Path) -> None:
    written(tmp_path).unlink()
    assert RunFolder.read(tmp_path).done == set()
    written(tmp_path, "a")
    assert keys(RunFolder.read(tmp_path)) == ["a"]


def test_a_summary_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.write_summary({"asr": 1})
        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write_summary({"asr": 0})
        assert run.summary()["asr"] == 1


# The disk refuses


@pytest.mark.parametrize("step", ["write", "rest of a write", "fsync"])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write, calls = os.write, []

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(fd: int, data: memoryview) -> int:
        calls.append(write(fd, data[: len(data) // 2]))
        return full() if step == "write" or len(calls) > 1 else calls[-1]

    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync" if step == "fsync" else "write", full if step == "fsync" else half)
            with pytest.raises(DiskError, match="No space left"):
                run.append(record("b", text="x" * 1000))
        assert (tmp_path / "episodes.jsonl").read_bytes().count(b"\n") == 1
        assert (tmp_path / "episodes.jsonl").read_bytes().endswith(b"}\n")
        assert run.done == {"a"}
        run.append(record("b"))
    assert keys(RunFolder.read(tmp_path)) == ["a", "b"]


def test_a_real_limit_of_the_system_leaves_whole_lines(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"))
        size = (tmp_path / "episodes.jsonl").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            with pytest.raises(DiskError, match="File too large"):
                run.append(record("b", text="x" * 1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "episodes.jsonl").stat().st_size == size
        run.append(record("b"))
    assert keys(RunFolder.read(tmp_path)) == ["a", "b"]


def test_a_tail_that_cannot_be_cut_stops_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def torn(fd: int, data: memoryview) -> int:
        write(fd, data[:5])
        raise OSError(errno.EIO, "Input/output error")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with RunFolder.open(tmp_path, MANIFEST) as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", torn)
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(DiskError, match="Input/output"):
                run.append(record("a"))
        with pytest.raises(RunCorruptError, match="could not be undone"):
            run.append(record("b"))
    written(tmp_path, "b")
    assert keys(RunFolder.read(tmp_path)) == ["b"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with RunFolder.open(tmp_path, MANIFEST) as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
            run.append(record("a", text="x" * 100))
        assert [episode.metadata["text"] for episode in run.episodes()] == ["x" * 100]


# Whose folder it is


def test_a_second_process_is_locked_out_until_the_first_dies(tmp_path: Path) -> None:
    process = start_writer(tmp_path, total=2, most=1)
    with finished(process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(RunLockedError) as caught:
            RunFolder.open(tmp_path, {"config": {}, "digest": "d"})
        assert (
            str(caught.value) == f"{tmp_path} is being written by another process: wait for it, or give another --out"
        )
        RunFolder.read(tmp_path)
    RunFolder.open(tmp_path, {"config": {}, "digest": "d"}).close()


def test_the_lock_ends_with_the_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST), pytest.raises(RunLockedError):
        RunFolder.open(tmp_path, MANIFEST)
    with pytest.raises(RunMismatchError):
        RunFolder.open(tmp_path, {**MANIFEST, "digest": "other"})
    written(tmp_path, "a")


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    written(tmp_path, "a")
    config = {**CONFIG, "agent": {"name": "gullible", "top_p": 1}, "seed": 1, "limit": 7}
    manifest = {"config": config, "digest": digest({**config, "limit": None})}
    with pytest.raises(RunMismatchError) as caught:
        RunFolder.open(tmp_path, manifest, ignore={"limit"})
    assert str(caught.value) == (
        f"{tmp_path} holds a run of other settings:\n"
        '  agent.name: stored "oracle", given "gullible"\n'
        "  agent.temperature: stored 0.0, given nothing\n"
        "  agent.top_p: stored nothing, given 1\n"
        "  seed: stored 0, given 1\n"
        "Give another --out, or the same settings to resume it"
    )
    assert isinstance(caught.value, FateGymError)


def test_other_data_under_the_same_settings_show_the_digests(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(RunMismatchError, match=f'digest: stored "{MANIFEST["digest"]}", given "beef"'):
        RunFolder.open(tmp_path, {**MANIFEST, "digest": "beef"})


def test_settings_outside_the_digest_may_change(tmp_path: Path) -> None:
    written(tmp_path, "a")
    config = {**CONFIG, "limit": 900}
    with RunFolder.open(tmp_path, {"config": config, "digest": digest({**config, "limit": None})}) as run:
        assert run.manifest["config"]["limit"] == 5
        assert run.done == {"a"}


def test_a_run_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "new", MANIFEST, resume=False).close()
    with pytest.raises(RunError, match="already holds a run: resume it, or give another --out"):
        RunFolder.open(tmp_path / "new", MANIFEST, resume=False)


def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text("mine")
    with pytest.raises(RunError, match="not a run: give another --out"):
        RunFolder.open(tmp_path, MANIFEST)
    with pytest.raises(RunError, match="is a file"):
        RunFolder.open(tmp_path / "episodes.jsonl", MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.jsonl"]
    assert (tmp_path / "episodes.jsonl").read_text() == "mine"


def test_a_folder_without_a_run_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=r"has no manifest\.json"):
            RunFolder.read(path)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        ("fate-gym/run/2", RunError, "newer fate-gym .schema fate-gym/run/2, this one reads fate-gym/run/1"),
        ("fate-gym/run/12", RunError, "newer fate-gym"),
        ("fate-gym/episode/1", RunCorruptError, "does not name its schema"),
        ("fate-gym/run/new", RunCorruptError, "does not name its schema"),
        (None, RunCorruptError, "does not name its schema"),
    ],
)
def test_a_run_of_a_newer_layout_is_refused(
    tmp_path: Path, schema: object, error: type[RunError], message: str
) -> None:
    written(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "schema": schema}) + "\n")
    for use in (RunFolder.read, lambda path: RunFolder.open(path, MANIFEST)):
        with pytest.raises(error, match=message):
            use(tmp_path)


def test_an_older_layout_is_read(tmp_path: Path) -> None:
    written(tmp_path, "a")
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "schema": "fate-gym/run/0"}) + "\n")
    assert RunFolder.read(tmp_path).done == {"a"}


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunCorruptError, match=r"manifest\.json is not a JSON object"):
        RunFolder.read(tmp_path)


def test_only_the_writer_writes(tmp_path: Path) -> None:
    written(tmp_path)
    closed = RunFolder.open(tmp_path, MANIFEST)
    closed.close()
    for run in (RunFolder.read(tmp_path), closed):
        for write in (lambda: run.append(record("a")), lambda: run.append(errored("a")), lambda: run.write_summary({})):  # noqa: B023
            with pytest.raises(RunError, match="not open for writing"):
                write()
    assert keys(RunFolder.read(tmp_path)) == []
    with pytest.raises(RunError, match=r"has no summary\.json"):
        closed.summary()
