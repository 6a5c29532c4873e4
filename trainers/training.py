"""What all training stages share: a folder that survives kills, arguments for transformers' trainers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fate_gym.chat import Json
from fate_gym.errors import RunMismatchError
from fate_gym.storage import dump, encode_line, records

OnStep: TypeAlias = Callable[[dict[str, Any]], None]
"""Called after each step with its record, the same that goes into `steps.jsonl`."""


class TrainingFolder:
    """The folder of one training: the same settings find what is done, others are refused.

    It holds `settings.json`, `steps.jsonl` (a record a step), `checkpoints/` while it trains, the policy at the end,
    and last of all `numbers.json`, so that a folder which has that is whole.

    Args:
        out: The folder.
        settings: All that decides the outcome, digests of the data included.

    Attributes:
        finished: The numbers of a training that is done, else None.
        checkpoint: The last whole checkpoint, if any.

    Raises:
        RunMismatchError: The folder holds a training of other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Json]) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.steps = out / "steps.jsonl"
        self._first = os.environ.get("RANK", "0") == "0"
        out.mkdir(parents=True, exist_ok=True)
        self._hold_to({"schema": "fate-gym/training/1", **settings})
        numbers = out / "numbers.json"
        self.finished: dict[str, Any] | None = json.loads(numbers.read_bytes()) if numbers.exists() else None
        self.checkpoint = _last_whole(self.checkpoints)

    @property
    def step(self) -> int:
        """Steps that are done and need no repeating."""
        return int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of steps so far."""
        return [record for _, record in records(self.steps)]

    def rewind(self) -> None:
        """Drops the records of steps past the checkpoint, which will be done again."""
        if self._first:
            kept = [record for record in self.records() if record["step"] <= self.step]
            _replace(self.steps, b"".join(map(encode_line, kept)))

    def finish(self, numbers: dict[str, Any]) -> None:
        """Marks the training as done; its checkpoints go, since nothing reads them any more."""
        if self._first:
            _replace(self.out / "numbers.json", dump(numbers))
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _hold_to(self, settings: dict[str, Json]) -> None:
        path = self.out / "settings.json"
        written = dump(settings, sort_keys=True)
        if path.exists():
            if path.read_bytes() != written:
                old, new = json.loads(path.read_bytes()), json.loads(written)
                differing = ", ".join(sorted(key for key in {*old, *new} if old.get(key) != new.get(key)))
                raise RunMismatchError(f"{self.out} holds a training of other {differing}: choose another folder")
        elif self._first:
            _replace(path, written)


def _last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, which is its `trainer_state.json`."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if _reads(path / "trainer_state.json")), None)


def _reads(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def make_arguments(
    kind: Callable[..., Any], folder: TrainingFolder, *, report_to: Sequence[str] = (), **own: Any
) -> Any:
    """Makes the arguments of a trainer of transformers or TRL: those that every stage shares, and its own.

    Args:
        kind: `TrainingArguments` or a class made from it.
        folder: Where it trains.
        report_to: Trackers that transformers knows ("wandb", "tensorboard", ...), installed and set up by the user.
        **own: Those of the stage.
    """
    import torch

    gpu = torch.cuda.is_available()
    shared = {
        "output_dir": str(folder.checkpoints),
        "use_cpu": not gpu,
        "bf16": gpu,
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "report_to": list(report_to) or "none",
        "weight_decay": 0.0,
    }
    with quiet():
        return kind(**shared, **own)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what transformers says of names that TRL and PEFT still use."""
    with warnings.catch_warnings():
        old = "(is_)?gradient_checkpointing(_enable|_disable)?"
        warnings.filterwarnings("ignore", f"`{old}` is deprecated", FutureWarning)
        yield
