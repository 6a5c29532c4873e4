"""Learning from a fixed set of sequences: what the warm-up and DPO share.

It runs on transformers' `Trainer`, through its public hooks, with batches that are dealt beforehand for all epochs: so
a resumed training sees what an unbroken one would have seen.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fate_gym.trainers.policy import LoraSettings, load_policy, lora_config, save_policy
from fate_gym.trainers.sequences import Batch, token_batches
from fate_gym.trainers.training import OnStep, TrainingFolder, make_arguments, quiet


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a policy learns from a fixed set of sequences.

    Attributes:
        epochs: Times that each is seen.
        learning_rate: Peak of AdamW's; 1e-4 fits adapters, 1e-5 all weights of a large model.
        warmup: Share of the steps over which it rises; from there it falls to 0 in a line.
        batch_tokens: Most tokens of a batch, padding included.
        max_grad_norm: Gradients are clipped to this norm.
        gradient_checkpointing: Whether to trade time for memory.
        save_every: Steps between checkpoints.
        report_to: Trackers that are told of every step.
        seed: Decides the order, and the adapters' first weights.

    Raises:
        ValueError: A number is out of its range.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.1
    batch_tokens: int = 4096
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    save_every: int = 50
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_tokens, self.save_every) < 1:
            raise ValueError("epochs, batch_tokens and save_every must be at least 1")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("learning_rate and max_grad_norm must be positive, warmup in [0, 1)")


@dataclass(frozen=True, slots=True)
class Objective:
    """What is learned.

    Attributes:
        collate: Indices of a batch -> its tensors.
        loss: (model, tensors) -> loss.
    """

    collate: Callable[[Sequence[int]], Batch]
    loss: Callable[[Any, Batch], Any]


def fit(
    policy: str | Path,
    lengths: Sequence[int],
    make_objective: Callable[[Any, float], Objective],
    settings: FitSettings,
    folder: TrainingFolder,
    *,
    lora: LoraSettings | None,
    attention: str | None,
    on_step: OnStep | None,
) -> dict[str, Any]:
    """Learns to the end, from the last checkpoint on, and saves the policy.

    Args:
        policy: The policy to begin with.
        lengths: Tokens of each thing to learn from, (n,).
        make_objective: Called with the model before it has learned anything, and the mean number of batches an epoch.
        settings: How.
        folder: Where; not finished yet.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        on_step: Called after each step.

    Returns:
        `steps`, `losses` (mean of each epoch), `loss` (of the last), `seconds` (in steps).
    """
    model, tokenizer = load_policy(policy, lora=lora is not None, attention=attention)

    import transformers

    from fate_gym.trainers.transformers_trainers import BatchTrainer, run

    if lora is not None:
        import peft

        transformers.set_seed(settings.seed)
        with quiet():
            model = peft.get_peft_model(model, lora_config(lora))
    epochs = [
        token_batches(lengths, settings.batch_tokens, f"{settings.seed}/{epoch}") for epoch in range(settings.epochs)
    ]
    batches = [batch for epoch in epochs for batch in epoch]
    objective = make_objective(model, len(batches) / settings.epochs)
    trainer = BatchTrainer(
        model=model,
        args=make_arguments(
            transformers.TrainingArguments,
            folder,
            report_to=settings.report_to,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(settings.warmup * len(batches)),
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            save_steps=settings.save_every,
            seed=settings.seed,
        ),
        train_dataset=batches,
        data_collator=lambda rows: objective.collate(rows[0]),
        loss=objective.loss,
    )
    run(trainer, folder, on_step)
    if trainer.is_world_process_zero():
        save_policy(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder.out)
    steps = folder.records()
    ends = list(itertools.accumulate(map(len, epochs)))
    losses = [
        statistics.fmean(step["loss"] for step in steps[end - len(epoch) : end])
        for end, epoch in zip(ends, epochs, strict=True)
    ]
    return {
        "steps": len(steps),
        "losses": losses,
        "loss": losses[-1],
        "seconds": round(sum(step["seconds"] for step in steps), 3),
    }
