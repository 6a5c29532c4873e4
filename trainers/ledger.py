"""What a training notes of itself: its settings, what its stages took, and what its checkpoints learned from."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fate_gym.agents.marks import MARK, contamination
from fate_gym.chat import Json
from fate_gym.errors import RunLockedError, RunMismatchError
from fate_gym.storage import AppendLog, digest, encode_line, records, replace_file
from fate_gym.trainers.episodes import Episode

SCHEMA: Final = "fate-gym/train/1"


class Ledger:
    """The folder of a training, held by one writer. Under torchrun the first process alone holds it and writes.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._held = ExitStack()

    def open(self, settings: Mapping[str, Json], *, may_change: Collection[str]) -> None:
        """Takes the folder, and notes the settings.

        Args:
            settings: The training's.
            may_change: Names of those with which a folder may be gone on with.

        Raises:
            RunLockedError: Another process trains in it.
            RunMismatchError: It holds a training of other settings.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        if not _first_process():
            return
        try:
            self._lock()
            self._hold_to(settings, may_change)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets the folder go."""
        self._held.close()

    @contextmanager
    def timed(self, stage: str, number: int | None = None) -> Iterator[None]:
        """Notes the time that a stage takes, that of starts which were killed excepted."""
        started = time.perf_counter()
        yield
        spent = round(time.perf_counter() - started, 3)
        if not _first_process():
            return
        log = AppendLog(self._out / "times.jsonl")
        log.append(encode_line({"stage": stage, "round": number, "seconds": spent}))
        log.close()

    def seconds(self) -> float:
        """Wall-clock seconds of the stages so far, over all starts."""
        times: list[float] = [line["seconds"] for _, line in records(self._out / "times.jsonl")]
        return round(sum(times), 1)

    def _lock(self) -> None:
        fd = os.open(self._out / ".fate-gym.lock", os.O_RDWR | os.O_CREAT, 0o666)
        self._held.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"another process trains in {self._out}: wait for it, or give another --out") from None

    def _hold_to(self, given: Mapping[str, Json], may_change: Collection[str]) -> None:
        path = self._out / "config.json"
        if path.exists():
            stored = json.loads(path.read_bytes())["config"]
            names = {*stored, *given} - set(may_change)
            changed = sorted(name for name in names if stored.get(name) != given.get(name))
            if changed:
                raise RunMismatchError(
                    f"{self._out} holds a training with other {', '.join(changed)}: "
                    "give the same settings to go on, or another --out"
                )
        replace_file(path, encode_line({"schema": SCHEMA, "config": dict(given), "digest": digest(given)}))


def mark(out: Path, learned: Sequence[Episode], *, earlier: Sequence[str | Path], told: Mapping[str, Json]) -> None:
    """Writes into a checkpoint's folder what it has learned from, and what those before it had.

    Args:
        out: The checkpoint's folder.
        learned: The episodes.
        earlier: The policies that it comes from.
        told: Further entries.
    """
    if not _first_process():
        return
    found = set(contamination(*earlier)).union(*(episode.contaminated_by for episode in learned))
    written = {
        "schema": SCHEMA,
        "contaminated_by": sorted(found),
        "learned_from": sorted({f"{episode.suite} ({episode.split or 'no split'})" for episode in learned}),
        **told,
    }
    replace_file(out / MARK, encode_line(written))


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
