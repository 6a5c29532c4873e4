"""The folder of a training: where its files lie, who may write them, and which settings and times stand in it."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError
from fate_gym.storage import (
    AppendLog,
    Fields,
    WriterLock,
    check_same_settings,
    digest,
    encode_line,
    make_folder,
    read_object,
    records,
    replace_file,
)
from fate_gym.trainers.config import MAY_CHANGE, TrainConfig, config_from
from fate_gym.trainers.processes import first_alone, is_first_process, together
from fate_gym.trainers.progress import ProgressReporter
from fate_gym.trainers.sampling import LocalSampler, Sampler
from fate_gym.trainers.server import ServerSampler

SCHEMA: Final = "fate-gym/train/2"


class TrainingFolder:
    """A training on disk. As a context manager it is the folder's only writer.

    Among several processes the first alone holds the folder, writes into it and reports progress; an error in one ends
    all (see `processes.together`).

    Args:
        config: The settings of the training.
        out: The folder.
        progress: Receives the progress.
        shared: Folder of the base policy and its scores, which several trainings may share; None for `out`.

    Raises:
        RunMismatchError: The folder holds a training with other settings.
        RunLockedError: Another process trains in it.
        RunError: A file in it is damaged.
    """

    def __init__(
        self, config: TrainConfig, out: Path, progress: ProgressReporter | None = None, *, shared: Path | None = None
    ) -> None:
        self.config, self.out, self.shared = config, out, shared or out
        self.progress = progress if progress and is_first_process() else ProgressReporter()
        self._held = ExitStack()

    def __enter__(self) -> TrainingFolder:
        # The lock is released if the settings do not fit, and kept to the end of the training if they do.
        with ExitStack() as held:
            held.enter_context(together())
            with first_alone():
                make_folder(self.out)
                if is_first_process():
                    held.enter_context(WriterLock(self.out))
                    self._check_settings(self.config.to_json(), (*MAY_CHANGE, *self.config.unread))
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)

    @property
    def base(self) -> str:
        """The policy before training: a folder, or an id on the hub."""
        return self.config.policy or str(self.shared / "base")

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Who samples the policy."""
        if self.config.sampler is None:
            return LocalSampler(self.config.agent, self.config.attention)
        return ServerSampler(self.config.sampler, self.base, self.config.agent, self.out)

    @contextmanager
    def timed(self, stage: str, number: int | None = None) -> Iterator[None]:
        """Records how long a stage took. The time of a start that was killed is not known, and not counted."""
        started = time.perf_counter()
        yield
        spent = round(time.perf_counter() - started, 3)
        if is_first_process():
            log = AppendLog(self.out / "times.jsonl")
            log.append(encode_line({"stage": stage, "round": number, "seconds": spent}))
            log.close()

    def seconds(self) -> float:
        """Returns the wall-clock seconds of the stages so far, over all starts.

        Raises:
            RunError: The file is damaged.
        """
        path = self.out / "times.jsonl"
        times = [Fields(record, f"{path}, line {line}") for line, record in records(path)]
        if wrong := [entry for entry in times if entry.number("seconds") < 0]:
            raise wrong[0].problem("seconds", "must not be negative")
        return round(sum(entry.number("seconds") for entry in times), 1)

    def _check_settings(self, given: Mapping[str, Json], may_change: Collection[str]) -> None:
        path = self.out / "config.json"
        if path.exists():
            stored = read_object(path, SCHEMA).object("config").values
            try:
                # Read as settings, so that one that is newer than the folder has its default.
                earlier = config_from(stored).to_json()
            except ValueError as error:
                raise RunCorruptError(f"{path}: {error}") from error
            check_same_settings(f"{self.out} holds a training", earlier, given, may_change)
        # Written again on resume, since some settings may have changed.
        replace_file(path, encode_line({"schema": SCHEMA, "config": dict(given), "digest": digest(given)}))
