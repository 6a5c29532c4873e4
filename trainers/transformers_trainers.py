"""Subclasses of transformers' training classes; apart, since whoever imports them waits seconds for transformers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from fate_gym.errors import FateGymError
from fate_gym.storage import AppendLog, encode_line
from fate_gym.trainers.training import OnStep, TrainingFolder, quiet


class BatchTrainer(Trainer):  # type: ignore[misc]
    """A trainer whose dataset holds whole batches, with a loss of ours.

    Args:
        loss: (model, tensors of a batch) -> the loss.
        **settings: Of transformers' `Trainer`.
    """

    def __init__(self, *, loss: Callable[[Any, Any], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._loss = loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Returns the loss of a batch."""
        return self._loss(model, inputs)


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Appends a record a step to `steps.jsonl`, and stops a training whose numbers are no longer finite.

    Args:
        folder: Whose records.
        on_step: Called with each.
        describe: What of transformers' logs goes into the record, besides step, loss and seconds.
    """

    def __init__(
        self, folder: TrainingFolder, on_step: OnStep | None, describe: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self._folder = folder
        self._on_step = on_step
        self._describe = describe
        self._log: AppendLog | None = None
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the file."""
        if state.is_world_process_zero:
            self._log = AppendLog(self._folder.steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes it."""
        if self._log:
            self._log.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Looks at the clock."""
        self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Writes the record of a step.

        Raises:
            FateGymError: The loss or the gradient is not finite.
        """
        if "loss" not in logs:
            return  # The summary at the end.
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise FateGymError(
                    f"the {name} of step {state.global_step} is {logs[name]}: lower the learning rate and train anew"
                )
        record = {
            "step": state.global_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "seconds": round(time.perf_counter() - self._began, 4),
            **self._describe(logs),
        }
        if self._log:
            self._log.append(encode_line(record))
            if self._on_step:
                self._on_step(record)


def run(
    trainer: Any,
    folder: TrainingFolder,
    on_step: OnStep | None,
    describe: Callable[[dict[str, Any]], dict[str, Any]] = lambda logs: {},
) -> None:
    """Trains to the end, from the last checkpoint on.

    Args:
        trainer: A trainer of transformers.
        folder: Where its checkpoints and records are.
        on_step: Called after each step.
        describe: As in `StepLog`.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepLog(folder, on_step, describe))
    folder.rewind()
    with quiet():
        trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
