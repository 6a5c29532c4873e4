"""The run folder: what an evaluation leaves on disk, whole after a kill at any byte.

| file | holds | written |
|---|---|---|
| `manifest.json` | the resolved configuration, its digest, versions | once, before the first episode |
| `episodes.jsonl` | one whole episode a line | appended and fsynced |
| `failures.jsonl` | episodes that errored; never in `episodes.jsonl` | appended and fsynced |
| `recorded.jsonl` | of an imported run: what each log said, a line an episode | appended and fsynced |
| `summary.json` | what is derived from the other files | replaced atomically |

The manifest names the version of this layout under `schema`. Lines end in LF alone and are ASCII, so that no other line
separator inside a string can split them. One process writes at a time, under a lock that dies with it; anyone may read
meanwhile.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.keys import Keys
from fate_gym.evaluation.recorded import Recorded
from fate_gym.evaluation.results import Result
from fate_gym.evaluation.scored import Scored
from fate_gym.storage import (
    BEGINNING,
    LOCK_FILE,
    AppendLog,
    Place,
    WriterLock,
    check_same_settings,
    corrupt,
    cut,
    encode_line,
    make_folder,
    placed_records,
    read_object,
    replace_file,
)

SCHEMA = "fate-gym/run/1"
"""What a manifest has under `schema`; the number rises when an older reader would misread the folder."""

EPISODES, FAILURES = "episodes.jsonl", "failures.jsonl"
"""The files of a run that hold episodes, one a line."""

_MANIFEST, _SUMMARY, _RECORDED = "manifest.json", "summary.json", "recorded.jsonl"
# All that a kill between mkdir and the manifest can leave behind.
_BEFORE_MANIFEST = {LOCK_FILE, f"{_MANIFEST}.tmp"}


OnProblem: TypeAlias = Callable[[RunError], None]

T = TypeVar("T")


def _readable(
    placed: Iterable[tuple[Place, dict[str, Any]]],
    path: Path,
    read: Callable[[Any, str], T],
    on_problem: OnProblem | None,
) -> Iterator[tuple[Place, T]]:
    """Yields (place, what `read` makes of the record); see `RunFolder.placed` for `on_problem`."""
    where = f"{path}, line "
    for place, record in placed:
        try:
            entry = read(record, f"{where}{place.line}")
        except RunError as problem:
            if on_problem is None:
                raise
            on_problem(problem)
        else:
            yield place, entry


class RunFolder:
    """One run on disk, opened by `open` (the single writer) or `read`; made of a path alone, it has read no episode.

    Attributes:
        path: The folder.
        manifest: The stored manifest. On resume it is that of the first start; settings outside the digest may differ.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        self._scored: Scored | None = None
        self._logs: dict[str, AppendLog] = {}
        # Reentrant: whoever writes may have to read first.
        self._mutex = threading.RLock()
        self._resources = ExitStack()

    @property
    def done(self) -> Keys:
        """Keys of the whole episodes on disk, read when they are first asked for.

        Raises:
            RunCorruptError: The file is damaged before its last line.
        """
        return (self._scored or self.scored()).keys

    @classmethod
    def open(
        cls,
        path: Path,
        manifest: Mapping[str, Json],
        *,
        ignore: Collection[str] = (),
        resume: bool = True,
        found: RunFolder | None = None,
    ) -> RunFolder:
        """Starts a run, or resumes the one that the folder holds.

        Args:
            path: The folder; made if missing.
            manifest: At least `schema` (SCHEMA), `config` (the resolved settings, a dict) and `digest` (what a resume
                must agree on).
            ignore: Keys of `config` that the digest leaves out, so that an error does not list them.
            resume: Whether a run that is already there may be continued.
            found: The same run as `find` returned it: what it has read is not read again.

        Raises:
            RunMismatchError: The folder holds a run with another digest.
            RunLockedError: Another writer has it open.
            RunCorruptError: A file is damaged before its last line.
            RunError: The folder is not a run, is one of a newer layout, or is one and `resume` is False.
        """
        _refuse_foreign_folder(path)
        make_folder(path)
        with ExitStack() as resources:
            resources.enter_context(WriterLock(path))
            if not (path / _MANIFEST).exists():
                replace_file(path / _MANIFEST, encode_line(manifest))
            elif resume:
                _check_same_run(path, _read_manifest(path), manifest, ignore)
            else:
                raise RunError(f"{path} already holds a run: resume it, or give another --out")
            logs = {}
            for name in (EPISODES, FAILURES, *((_RECORDED,) if "imported" in manifest else ())):
                logs[name] = AppendLog(path / name)
                resources.callback(logs[name].close)
            run = cls(path)
            run._scored = None if found is None else found._scored
            run.scored()
            run._logs, run._resources = logs, resources.pop_all()
        return run

    @classmethod
    def find(cls, path: Path, manifest: Mapping[str, Json], *, ignore: Collection[str] = ()) -> RunFolder | None:
        """Returns the run that `open` would resume, for reading; None where it would start one. Nothing is written.

        Raises:
            RunError: As `open`, but for a folder that is in use.
        """
        _refuse_foreign_folder(path)
        if not (path / _MANIFEST).exists():
            return None
        _check_same_run(path, _read_manifest(path), manifest, ignore)
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Opens a run for reading, also while it is written; a torn last line is passed over.

        Raises:
            RunCorruptError: A file is damaged before its last line.
            RunError: The folder is not a run, or one of a newer layout.
        """
        run = cls(path)
        run.scored()
        return run

    def append(self, *episodes: Episode) -> None:
        """Adds episodes; see `add`.

        Raises:
            ValueError: As there, or an episode cannot be written as JSON.
            DiskError: As there.
        """
        self.add(*map(Finished.of, episodes))

    def add(self, *finished: Finished) -> None:
        """Adds finished episodes; when this returns, they survive a loss of power. Thread-safe.

        One that errored goes into `failures.jsonl`, where its key may come again.

        Raises:
            ValueError: A scored episode's key is there already; nothing is written then.
            DiskError: The disk refused; the file is as it was before.
        """
        self._add(finished)

    def append_imported(self, played: Sequence[tuple[Episode, Recorded]]) -> None:
        """Adds imported episodes with what their logs said; when this returns, all of them survive a loss of power.

        Raises:
            ValueError: A scored episode's key is there already.
            DiskError: The disk refused.
        """
        records = [encode_line(recorded.to_json()) for _, recorded in played]
        self._add([Finished.of(episode) for episode, _ in played], records)

    def _add(self, finished: Sequence[Finished], records: Sequence[bytes] = ()) -> None:
        """Writes the lines of some episodes, file by file, and counts them."""
        scored = [one for one in finished if one.result.status == "ok"]
        lines = {
            # The records first, so that no episode stands there without its own.
            _RECORDED: records,
            EPISODES: [one.line for one in scored],
            FAILURES: [one.line for one in finished if one.result.status != "ok"],
        }
        path = self.path / EPISODES
        with self._mutex:
            known = self._scored or self.scored()
            keys = [one.key for one in scored]
            if twice := [key for key in keys if key in known.keys or keys.count(key) > 1]:
                raise ValueError(f"{self.path}: the episode {twice[0]!r} is already there")
            known.edited |= known.modified not in (None, _modified(path))
            try:
                for name, written in lines.items():
                    if written:
                        self._log(name).append(*written)
            except BaseException:
                # One file may have its lines, and another not.
                self._scored = None
                raise
            known.modified = _modified(path)
            for one in scored:
                known.count(one)

    def recorded(self, on_problem: OnProblem | None = None) -> Iterator[Recorded]:
        """Yields what the logs of an imported run said, of scored episodes alone; see `episodes`.

        Of an episode that a kill left without its own line, another line may follow: the last one counts.
        """
        path = self.path / _RECORDED
        for _, entry in _readable(placed_records(path), path, Recorded.from_json, on_problem):
            if entry.key in self.done:
                yield entry

    def episodes(self, on_problem: OnProblem | None = None) -> Iterator[Episode]:
        """Yields the scored episodes in the order in which they ended, reading as it goes; see `placed`."""
        return (episode for _, episode in self.placed(EPISODES, on_problem))

    def failures(self, on_problem: OnProblem | None = None) -> Iterator[Episode]:
        """Yields the episodes that errored, every attempt; see `placed`."""
        return (episode for _, episode in self.placed(FAILURES, on_problem))

    def placed(self, name: str, on_problem: OnProblem | None = None) -> Iterator[tuple[Place, Episode]]:
        """Yields each episode of a file and where its line stands.

        Args:
            name: `EPISODES` or `FAILURES`.
            on_problem: Called with the error of each record that is not an episode, which is then left out. None
                to raise the error.

        Raises:
            RunCorruptError: A line before the last is not a JSON object, or a scored one has no key of its own; or a
                record is no episode's, or that of an episode of the other file.
        """
        path = self.path / name
        placed = self._keyed(Keys(), BEGINNING) if name == EPISODES else placed_records(path)
        return _readable(placed, path, functools.partial(_episode_in, name), on_problem)

    def scored(self, on_problem: OnProblem | None = None) -> Scored:
        """Reads the scored episodes that others have written since it was called before; see `placed`."""
        with self._mutex:
            return self._read_scored(on_problem)

    def _read_scored(self, on_problem: OnProblem | None) -> Scored:
        path = self.path / EPISODES
        found = path.stat() if path.exists() else None
        file = None if found is None else (found.st_dev, found.st_ino)
        scored = self._scored
        if scored is None or scored.file != file or (found and _is_edited(scored, found)):
            scored = self._scored = Scored(file)
        try:
            read = functools.partial(_episode_in, EPISODES)
            for place, episode in _readable(self._new(scored), path, read, on_problem):
                scored.places.note(episode.key, place)
                scored.tally.add(Result.of(episode), episode.usage, episode.seconds["total"])
        except BaseException:
            self._scored = None
            raise
        return scored

    def _new(self, scored: Scored) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yields the records after the last one that was read, and moves on with each, whatever it holds."""
        for place, record in self._keyed(scored.keys, scored.place):
            scored.place = place
            yield place, record

    def _keyed(self, keys: Keys, after: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yields the records after a place, and adds their keys to those that stand before it."""
        path = self.path / EPISODES
        for place, record in placed_records(path, after):
            key = record.get("key")
            if not isinstance(key, str) or not keys.add(key):
                raise corrupt(path, place.line, "has no key" if key is None else f"repeats key {cut(repr(key))}")
            yield place, record

    def check(self) -> None:
        """Makes sure that the logs still hold what was written; for the writer.

        Raises:
            DiskError: One was removed, or changed by another program.
        """
        with self._mutex:
            for log in self._logs.values():
                log.check()

    def write_summary(self, summary: Mapping[str, Json]) -> None:
        """Replaces the summary: a reader sees the old one or the new one, whole."""
        with self._mutex:
            self._log(EPISODES)
            replace_file(self.path / _SUMMARY, encode_line(summary))

    def replace_manifest(self, manifest: Mapping[str, Json]) -> None:
        """Replaces the manifest by one with other settings among those that the digest leaves out."""
        with self._mutex:
            self._log(EPISODES)
            replace_file(self.path / _MANIFEST, encode_line(manifest))
            self.manifest = dict(manifest)

    def summary(self) -> dict[str, Any]:
        """Returns the last summary written; raises `RunError` if there is none."""
        return read_object(self.path / _SUMMARY).values

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

    def _log(self, name: str) -> AppendLog:
        if name not in self._logs:
            raise RunError(f"{self.path} is not open for writing")
        return self._logs[name]


def _modified(path: Path) -> int | None:
    """Returns when a file was last written, in ns; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _is_edited(scored: Scored, found: os.stat_result) -> bool:
    """Whether a file need not hold any more what has been read of it, or written: another program has changed it."""
    return scored.edited or found.st_size < scored.place.end or scored.modified not in (None, found.st_mtime_ns)


def _episode_in(name: str, record: Any, where: str) -> Episode:
    """Reads an episode of a file; one of the other file would be looked for there, and counted as what it is not."""
    episode = Episode.from_json(record, where)
    belongs = EPISODES if episode.status == "ok" else FAILURES
    if belongs != name:
        raise RunCorruptError(f"{where}: {cut(episode.key)} has status {episode.status!r}, it belongs in {belongs}")
    return episode


def _refuse_foreign_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a folder: give another --out")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if _MANIFEST not in names and names - _BEFORE_MANIFEST:
        raise RunError(f"{path} is not empty and holds no {_MANIFEST}, so it is not a run: give another --out")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_object(path / _MANIFEST, SCHEMA)
    manifest.object("config")
    manifest.text("digest")
    return manifest.values


def _check_same_run(path: Path, stored: Mapping[str, Any], given: Mapping[str, Any], ignore: Collection[str]) -> None:
    if stored["digest"] != given["digest"]:
        check_same_settings(f"{path} holds a run", stored["config"], given["config"], ignore)
        # The settings are the same: the benchmark's data or its judges are not.
        check_same_settings(f"{path} holds a run", {"digest": stored["digest"]}, {"digest": given["digest"]})
