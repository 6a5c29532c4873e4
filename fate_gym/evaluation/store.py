"""The run folder: what an evaluation leaves on disk, whole after a kill at any byte.

| file | holds | written |
|---|---|---|
| `manifest.json` | the resolved configuration, its digest, versions | once, before the first episode |
| `episodes.jsonl` | one whole episode a line | appended and fsynced |
| `failures.jsonl` | episodes that errored; never in `episodes.jsonl` | appended and fsynced |
| `summary.json` | what is derived from the other files | replaced atomically |

The manifest names the version of this layout under `schema`. Lines end in LF alone and are ASCII, so that no other line
separator inside a string can split them. One process writes at a time, under a lock that dies with it
(`flock`, hence POSIX systems only); anyone may read meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from fate_gym.chat import Json
from fate_gym.errors import FateGymError

SCHEMA = "fate-gym/run/1"
"""What a manifest has under `schema`; the number rises when an older reader would misread the folder."""

MAX_DEPTH = 200
"""Deepest nesting of a record: parsers give up somewhere above, depending on version and stack."""

_MANIFEST, _EPISODES, _FAILURES, _SUMMARY = "manifest.json", "episodes.jsonl", "failures.jsonl", "summary.json"
_LOCK = ".fate-gym.lock"
# All that a kill between mkdir and the manifest can leave behind.
_BEFORE_MANIFEST = {_LOCK, f"{_MANIFEST}.tmp"}


class RunError(FateGymError):
    """A folder cannot be used as the run that was asked for."""


class RunMismatchError(RunError):
    """The folder holds a run of other settings."""


class RunLockedError(RunError):
    """Another writer has the run open."""


class RunCorruptError(RunError):
    """A file of the run is damaged where a kill cannot have damaged it."""


class RunFolder:
    """One run on disk, opened by `open` (the single writer) or `read`.

    Attributes:
        path: The folder.
        manifest: The stored manifest; on resume that of the first start, whatever the settings that the digest ignores.
        done: Keys of the whole episodes on disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        self.done = {episode["key"] for episode in self.episodes()}
        self._logs: dict[str, _Log] = {}
        self._mutex = threading.Lock()
        self._resources = ExitStack()

    @classmethod
    def open(
        cls, path: Path, manifest: Mapping[str, Json], *, ignore: Collection[str] = (), resume: bool = True
    ) -> RunFolder:
        """Starts a run, or resumes the one that the folder holds.

        Args:
            path: The folder; made if missing.
            manifest: At least `schema` (SCHEMA), `config` (the resolved settings, a dict) and `digest` (what a resume
                must agree on).
            ignore: Keys of `config` that the digest leaves out, so that an error does not list them.
            resume: Whether a run that is already there may be continued.

        Raises:
            RunMismatchError: The folder holds a run with another digest.
            RunLockedError: Another writer has it open.
            RunCorruptError: A file is damaged before its last line.
            RunError: The folder is not a run, is one of a newer layout, or is one and `resume` is False.
        """
        _refuse_foreign_folder(path)
        _make_folder(path)
        with ExitStack() as resources:
            _lock(path, resources)
            if not (path / _MANIFEST).exists():
                _replace(path / _MANIFEST, manifest)
            elif resume:
                _check_same_settings(path, _read_manifest(path), manifest, ignore)
            else:
                raise RunError(f"{path} already holds a run: resume it, or give another --out")
            logs = {}
            for name in (_EPISODES, _FAILURES):
                logs[name] = _Log(path / name)
                resources.callback(logs[name].close)
            _sync_folder(path)
            run = cls(path)
            run._logs, run._resources = logs, resources.pop_all()
        return run

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Opens a run for reading, also while it is written; a torn last line is passed over.

        Raises:
            RunCorruptError: A file is damaged before its last line.
            RunError: The folder is not a run, or one of a newer layout.
        """
        return cls(path)

    def append(self, episode: Mapping[str, Json]) -> None:
        """Adds one finished episode; when this returns, it survives a loss of power. Thread-safe.

        Args:
            episode: JSON values; `key` (a string) is its identity.

        Raises:
            ValueError: The key is missing or already there, or the episode cannot be written as JSON.
            OSError: The disk refused; the file is as it was before.
        """
        key = episode.get("key")
        if not isinstance(key, str) or _SURROGATE.search(key):
            raise ValueError(f"an episode's key must be a string of valid Unicode, not {key!r}")
        line = _line(episode)
        with self._mutex:
            if key in self.done:
                raise ValueError(f"{self.path}: the episode {key!r} is already there")
            self._log(_EPISODES).append(line)
            self.done.add(key)

    def append_failure(self, record: Mapping[str, Json]) -> None:
        """Adds one episode that errored; its key may come again. Thread-safe; raises as `append` does."""
        line = _line(record)
        with self._mutex:
            self._log(_FAILURES).append(line)

    def episodes(self) -> Iterator[dict[str, Any]]:
        """Yields the finished episodes in the order in which they ended, reading as it goes.

        Raises:
            RunCorruptError: A line before the last is not a record, or an episode has no key of its own.
        """
        seen = set()
        for number, episode in _records(self.path / _EPISODES):
            key = episode.get("key")
            if not isinstance(key, str) or key in seen:
                raise _corrupt(self.path / _EPISODES, number, "has no key" if key is None else f"repeats key {key!r}")
            seen.add(key)
            yield episode

    def failures(self) -> Iterator[dict[str, Any]]:
        """Yields the episodes that errored, every attempt; raises `RunCorruptError` for a damaged line."""
        for _, record in _records(self.path / _FAILURES):
            yield record

    def write_summary(self, summary: Mapping[str, Json]) -> None:
        """Replaces the summary: a reader sees the old one or the new one, whole."""
        with self._mutex:
            self._log(_EPISODES)
            _replace(self.path / _SUMMARY, summary)

    def summary(self) -> dict[str, Any]:
        """Returns the last summary written; raises `RunError` if there is none."""
        return _read_object(self.path / _SUMMARY)

    def close(self) -> None:
        """Lets another writer in; the run stays readable."""
        with self._mutex:
            self._logs = {}
            self._resources.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _log(self, name: str) -> _Log:
        if name not in self._logs:
            raise RunError(f"{self.path} is not open for writing")
        return self._logs[name]


def config_digest(config: Mapping[str, Json], ignore: Collection[str] = ()) -> str:
    """Returns the SHA-256, in hex, of the canonical JSON of a configuration.

    Args:
        config: The resolved settings.
        ignore: Top-level keys that may change between a start and its resume, such as the concurrency.
    """
    return hashlib.sha256(_dump(_without(config, ignore))).hexdigest()


class _Log:
    """A file of lines that holds whole lines only, after every append that succeeds and every one that fails."""

    def __init__(self, path: Path) -> None:
        _cut_torn_tail(path)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._whole = True

    def append(self, line: bytes) -> None:
        if not self._whole:
            raise RunCorruptError(f"{self._path}: a failed write could not be undone; run again to repair and resume")
        end = os.fstat(self._fd).st_size
        self._whole = False
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, end)
            self._whole = True
            raise
        self._whole = True

    def close(self) -> None:
        os.close(self._fd)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _cut_torn_tail(path: Path) -> None:
    """Removes a last line that a kill left unfinished, lest the next record be glued to it and both be lost."""
    if not path.exists():
        return
    start = end = 0
    line = b""
    with path.open("rb") as file:
        for line in file:
            start, end = end, end + len(line)
    try:
        if line:
            _parse(line)
    except ValueError:
        os.truncate(path, start)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, record); an unfinished last line is in flight or was, and is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = _parse(line)
            except ValueError as error:
                if not line.endswith(b"\n") or not file.peek(1):
                    return
                raise _corrupt(path, number, "is not a JSON object") from error
            yield number, record


def _parse(line: bytes) -> dict[str, Any]:
    """Returns the object on a line; ValueError if the line is anything else or lacks its end."""
    if not line.endswith(b"\n"):
        raise ValueError("unfinished")
    try:
        value = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _corrupt(path: Path, number: int, what: str) -> RunCorruptError:
    return RunCorruptError(
        f"{path}, line {number} {what}: the file was changed or damaged after it was written. "
        "Restore it, or delete that line and resume, which runs its episode again"
    )


# A surrogate in a Python string stands alone, whereas JSON writes other characters as pairs of them.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def _dump(value: Mapping[str, Json]) -> bytes:
    """Returns canonical JSON in ASCII; lone surrogates, at which strict readers stop, become U+FFFD.

    Raises:
        ValueError: NaN, an infinity, an integer too long to be read back, or too deep a nesting.
        TypeError: Something that is not JSON.
    """
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    _check_depth(value)
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text).encode("ascii")


def _line(value: Mapping[str, Json]) -> bytes:
    return _dump(value) + b"\n"


def _check_depth(value: Json) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _children(node: Json) -> Collection[Json]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _replace(path: Path, value: Mapping[str, Json]) -> None:
    """Writes a file so that, whatever happens, its name stands for the old content or the new, never a part."""
    data = _line(value)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file covers its content only."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    _sync_folder(path.parent)


def _lock(path: Path, resources: ExitStack) -> None:
    """Takes the writer's lock until `resources` closes; the kernel releases it when the process dies."""
    fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    resources.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunLockedError(
            f"{path} is being written by another process: wait for it, or give another --out"
        ) from None
    # Closing is not enough where a forked child holds a copy of the descriptor.
    resources.callback(fcntl.flock, fd, fcntl.LOCK_UN)


def _refuse_foreign_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a folder: give another --out")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if _MANIFEST not in names and names - _BEFORE_MANIFEST:
        raise RunError(f"{path} is not empty and holds no {_MANIFEST}, so it is not a run: give another --out")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _read_object(path / _MANIFEST)
    family, _, version = str(manifest.get("schema")).rpartition("/")
    known, _, newest = SCHEMA.rpartition("/")
    if family != known or not version.isdecimal():
        raise RunCorruptError(f"{path / _MANIFEST} does not name its schema ({SCHEMA} or older): restore it")
    if int(version) > int(newest):
        raise RunError(
            f"{path} was written by a newer fate-gym (schema {manifest['schema']}, this one reads {SCHEMA}): "
            "upgrade with `pip install -U fate-gym`"
        )
    return manifest


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path.parent} has no {path.name}: is it the folder of a run?") from None
    except ValueError as error:
        raise RunCorruptError(f"{path} is not a JSON object: restore it") from error


def _check_same_settings(
    path: Path, stored: Mapping[str, Any], given: Mapping[str, Json], ignore: Collection[str]
) -> None:
    if stored.get("digest") == given["digest"]:
        return
    old, new = (dict(_leaves(_without(manifest.get("config", {}), ignore))) for manifest in (stored, given))
    changed = [name for name in sorted({*old, *new}) if old.get(name, "nothing") != new.get(name, "nothing")]
    lines = [f"  {name}: stored {old.get(name, 'nothing')}, given {new.get(name, 'nothing')}" for name in changed]
    digests = f"  digest: stored {stored.get('digest')}, given {given['digest']}"
    raise RunMismatchError(
        "\n".join([f"{path} holds a run of other settings:", *(lines or [digests])])
        + "\nGive another --out, or the same settings to resume it"
    )


def _leaves(config: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, value as JSON) of every setting, nested ones by themselves."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _dump({"": value})[4:-1].decode()


def _without(config: Mapping[str, Json], ignore: Collection[str]) -> dict[str, Json]:
    return {key: value for key, value in config.items() if key not in ignore}
