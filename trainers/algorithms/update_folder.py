"""The folder of one update of the weights, such as a round's warm-up, which a kill at any byte leaves usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.storage import (
    Fields,
    check_same_settings,
    dump,
    encode_line,
    make_folder,
    read_object,
    records,
    replace_file,
    sync_tree,
)
from fate_gym.trainers.processes import is_first_process, sharding

SCHEMA = "fate-gym/training/1"

_COMPLETE = "complete"
"""In a checkpoint's folder: written last, so that a kill or a loss of power leaves none that is only half there. It
holds what `processes.sharding` said."""

Numbers: TypeAlias = dict[str, Any]
"""What an update did, as it stands in `numbers.json`: steps, losses, tokens, seconds."""

OnStep: TypeAlias = Callable[[dict[str, Any]], None]
"""Called after each step with its record, which is also the line in `steps.jsonl`."""


class UpdateFolder:
    """The folder of one update. The same settings resume it, other settings are refused.

    It holds `settings.json`, `steps.jsonl` (one record per step), `checkpoints/` while the update runs, the policy at
    the end, and `numbers.json`, which is written last: a folder that has it is complete.

    Args:
        out: The folder; made if it is missing.
        settings: Everything that decides the outcome, digests of the data included.

    Attributes:
        finished: The numbers of an update that is complete, else None.
        checkpoint: The last complete checkpoint, if any.

    Raises:
        RunMismatchError: The folder holds an update with other settings.
        RunError: A file in it is damaged, or the last checkpoint is one that only another launcher can go on from.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        make_folder(out)
        self._check_settings({"schema": SCHEMA, **settings})
        numbers = read_numbers(out)
        self.finished: Numbers | None = None if numbers is None else numbers.values
        self.checkpoint = _last_complete(self.checkpoints)
        if self.checkpoint is not None and self.finished is None:
            _check_sharding(self.checkpoint)

    @property
    def step(self) -> int:
        """Steps that need no repeating."""
        return _step(self.checkpoint) if self.checkpoint else 0

    def steps(self) -> list[Fields]:
        """Returns the records of the steps so far."""
        return read_steps(self.out)

    def rewind(self) -> None:
        """Drops the records of steps after the checkpoint: these steps will be done again."""
        if is_first_process():
            kept = [record.values for record in self.steps() if record.integer("step") <= self.step]
            replace_file(self.out / "steps.jsonl", b"".join(map(encode_line, kept)))

    def mark_checkpoint(self, step: int) -> None:
        """Marks the checkpoint of a step as complete, once it would survive a loss of power."""
        if is_first_process():
            checkpoint = self.checkpoints / f"checkpoint-{step}"
            sync_tree(checkpoint)
            replace_file(checkpoint / _COMPLETE, sharding().encode())

    def finish(self, numbers: Numbers) -> None:
        """Marks the update as complete, and deletes its checkpoints, which nothing reads any more."""
        if is_first_process():
            # Libraries write weights without syncing them, and whoever reads the mark relies on them.
            sync_tree(self.out)
            replace_file(self.out / "numbers.json", dump(numbers))
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _check_settings(self, settings: dict[str, Json]) -> None:
        path = self.out / "settings.json"
        encoded = dump(settings, sort_keys=True)
        if path.exists():
            # Compared as JSON: what was a tuple in memory is a list on disk.
            check_same_settings(f"{self.out} holds an update", read_object(path, SCHEMA).values, json.loads(encoded))
        elif is_first_process():
            replace_file(path, encoded)


def read_numbers(out: Path) -> Fields | None:
    """Returns the numbers of an update, or None if it is not complete.

    Raises:
        RunError: The file is damaged.
    """
    path = out / "numbers.json"
    return read_object(path) if path.exists() else None


def read_steps(out: Path) -> list[Fields]:
    """Returns the records of an update's steps so far.

    Raises:
        RunError: The file is damaged.
    """
    path = out / "steps.jsonl"
    return [Fields(record, f"{path}, line {line}") for line, record in records(path)]


def _last_complete(folder: Path) -> Path | None:
    newest_first = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    return next((path for path in newest_first if (path / _COMPLETE).exists()), None)


def _check_sharding(checkpoint: Path) -> None:
    """Checks that these processes can go on from a checkpoint: each way of sharding writes files of its own."""
    then, now = ((kind or "no sharding") for kind in ((checkpoint / _COMPLETE).read_text(), sharding()))
    if then != now:
        raise RunError(
            f"{checkpoint} was written under {then}, and this start has {now}: use the launcher and configuration of "
            f"before, or delete {checkpoint.parent} to begin this update again"
        )


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint, which transformers writes into its name."""
    number = checkpoint.name.rpartition("-")[2]
    if not number.isdecimal():
        raise RunCorruptError(f"{checkpoint} is no checkpoint that a trainer wrote: remove it")
    return int(number)
