"""What all updates ask of transformers. Importing this module takes seconds, so functions import it when they run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from fate_gym.agents.local import load_model
from fate_gym.errors import FateGymError, UsageError
from fate_gym.storage import AppendLog, encode_line, native_disk_errors
from fate_gym.trainers.algorithms.sequences import Batch
from fate_gym.trainers.algorithms.update_folder import OnStep, UpdateFolder
from fate_gym.trainers.policy import Model, Tokenizer, quiet, save_policy


def make_arguments(kind: Callable[..., Any], folder: UpdateFolder, *, report_to: Sequence[str], **own: Any) -> Any:
    """Makes the arguments of a trainer of transformers or TRL: those that every update shares, and its own.

    Args:
        kind: `TrainingArguments` or a subclass of it.
        folder: The update's folder.
        report_to: Experiment trackers ("wandb", "tensorboard", ...), which the user has installed and set up.
        **own: The arguments of this update.
    """
    gpu = torch.cuda.is_available()
    shared = {
        "output_dir": str(folder.checkpoints),
        "use_cpu": not gpu,
        "bf16": gpu,
        "dataloader_pin_memory": gpu,
        "disable_tqdm": True,
        "logging_steps": 1,
        # A filtered loss would hide the step at which it became NaN; `StepLog` stops there.
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        # Two, since a kill may leave the newest one incomplete.
        "save_total_limit": 2,
        "report_to": list(report_to) or "none",
        "weight_decay": 0.0,
    }
    with quiet():
        return kind(**shared, **own)


class BatchTrainer(Trainer):  # type: ignore[misc]
    """A trainer whose dataset holds whole batches, with a loss of ours.

    Args:
        loss: (model, tensors of a batch) -> the loss, which is multiplied by the tensor "counts".
        **settings: Arguments of transformers' `Trainer`.
    """

    def __init__(self, *, loss: Callable[[Model, Batch], Tensor], **settings: Any) -> None:
        super().__init__(**settings)
        self._loss = loss

    def compute_loss(self, model: Model, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Returns the loss of a batch."""
        return self._loss(model, inputs) * inputs["counts"]


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Appends a record per step to `steps.jsonl`, and stops an update whose numbers are no longer finite.

    Args:
        folder: The update's folder.
        on_step: Called with each record.
        describe: Returns what stands in the record of a step besides step, loss and time, from transformers' logs.
        is_last: Whether a step, given by its record, is the last one, though more were planned.
    """

    def __init__(
        self,
        folder: UpdateFolder,
        on_step: OnStep | None,
        describe: Callable[[dict[str, Any]], dict[str, Any]],
        is_last: Callable[[dict[str, Any]], bool],
    ) -> None:
        self._folder = folder
        self._on_step = on_step
        self._describe = describe
        self._is_last = is_last
        self._log: AppendLog | None = None
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the file."""
        if state.is_world_process_zero:
            self._log = AppendLog(self._folder.out / "steps.jsonl")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the file."""
        if self._log:
            self._log.close()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Marks the checkpoint that was just written."""
        self._folder.mark_checkpoint(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Writes the record of a step.

        Raises:
            FateGymError: The loss or the gradient is not finite.
        """
        if "loss" not in logs:
            return  # transformers' summary at the end of training, which is no step.
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
        if self._is_last(record):
            control.should_training_stop = True
            # A checkpoint of the last step would be resumed from, and then there would be one more step.
            control.should_save = False


def train_to_end(
    trainer: Any,
    folder: UpdateFolder,
    on_step: OnStep | None,
    describe: Callable[[dict[str, Any]], dict[str, Any]] = lambda logs: {},
    is_last: Callable[[dict[str, Any]], bool] = lambda record: False,
) -> None:
    """Runs a trainer of transformers to its last step, from the last checkpoint on.

    Args:
        trainer: The trainer.
        folder: The update's folder.
        on_step: Called after each step.
        describe: As in `StepLog`.
        is_last: As in `StepLog`.

    Raises:
        UsageError: DeepSpeed would lose what is learned.
    """
    if trainer.is_deepspeed_enabled and trainer.args.bf16 and not isinstance(trainer.model, peft.PeftModel):
        # It learns float32 copies, but of weights that it has rounded, and rounds them again where they are saved.
        # Adapters begin anew with each update, so that rounding costs them precision alone.
        raise UsageError(
            "DeepSpeed rounds all weights to bfloat16 before and after each update, and small changes are lost: learn "
            "adapters (`lora`), or launch with fsdp2.yaml"
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepLog(folder, on_step, describe, is_last))
    folder.rewind()
    with quiet(), native_disk_errors(folder.checkpoints):
        trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)


def save_trained(trainer: Any, policy: str, tokenizer: Tokenizer, out: Path) -> None:
    """Saves what a trainer has learned (see `save_policy`), whatever its processes hold of it; all must call this.

    Args:
        trainer: The trainer, at its end.
        policy: The weights that it started from.
        tokenizer: The policy's tokenizer.
        out: The folder.
    """
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    if accelerator.distributed_type != DistributedType.NO:
        state = accelerator.get_state_dict(trainer.model_wrapped)
        model = _rebuilt(model, policy, state) if trainer.is_world_process_zero() else model
    if trainer.is_world_process_zero():
        save_policy(model, tokenizer, out)
    accelerator.wait_for_everyone()


def _rebuilt(model: Model, policy: str, state: dict[str, Tensor]) -> Model:
    """Makes a model of its whole state, on the CPU: the parameters of `model` may be shards."""
    whole = load_model(policy, dtype=model.dtype)
    if not isinstance(model, peft.PeftModel):
        whole.load_state_dict(state)
        return whole
    with quiet():
        whole = peft.get_peft_model(whole, model.peft_config["default"])
    adapter = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name="default")
    peft.set_peft_model_state_dict(whole, adapter)
    return whole
