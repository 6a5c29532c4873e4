"""Supervised learning on sequences of token ids: the warm-up's update, and the loop that DPO shares with it.

The warm-up's loss (FATE, section 4.3) is

    L = sum_i w_i L_i / sum_i w_i,   L_i = -(1 / |a_i|) sum_t m_it log pi(a_it | p_i, a_i<t)

with m = 1 on the policy's own tokens and |a_i| their number. The same code is two baselines: SFT learns from repairs
alone, RFT from successes.

It runs on transformers' `Trainer`, through its public hooks, with the batches of all epochs made in advance, so that a
resumed update sees what an uninterrupted one would have seen. TRL's `SFTTrainer` (1.16) would not do: it drops example
weights, cannot batch by tokens, and takes private overrides to accept ids with a mask.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fate_gym.trainers.algorithms.sequences import Batch, Example, collate, digest, log_probs, token_batches
from fate_gym.trainers.algorithms.settings import SupervisedSettings
from fate_gym.trainers.algorithms.update_folder import Numbers, OnStep, UpdateFolder
from fate_gym.trainers.policy import LoraSettings, Model, load_policy, with_adapters
from fate_gym.trainers.processes import process_count

if TYPE_CHECKING:
    from torch import Tensor


def learn_examples(
    policy: str,
    examples: Sequence[Example],
    settings: SupervisedSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    attention: str | None = None,
    chat_template: str | None = None,
    on_step: OnStep | None = None,
) -> Numbers:
    """Learns from examples and saves the policy (see `save_policy`). An interrupted call is resumed by the same call.

    Args:
        policy: Weights to start from.
        examples: The sequences to learn.
        settings: Hyperparameters of the update.
        out: The update's folder.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        chat_template: As in `LocalAgent`; the new policy keeps it.
        on_step: Called after each step.

    Returns:
        `steps`, `examples`, `tokens` (of all sequences, over all epochs), `written` (those of them that were learned),
        `losses` (mean of each epoch), `loss` (of the last epoch), `seconds` (in steps).

    Raises:
        ValueError: There is no example.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds an update with other settings or examples.
        FateGymError: The loss or the gradient is not finite.
    """
    if not examples:
        raise ValueError("there is nothing to learn from: no examples")
    data = {"stage": "warmup", "examples": digest(examples), "lora": lora and lora.to_json()}
    folder = UpdateFolder(out, {**data, **dataclasses.asdict(settings)})
    if folder.finished is not None:
        return folder.finished
    weight = sum(example.weight for example in examples)

    def objective(model: Model, batches: float) -> Objective:
        def loss(model: Model, batch: Batch) -> Tensor:
            per_example = -log_probs(model, batch).sum(-1) / batch["policy_tokens"].sum(-1)
            # Divided by the mean weight of a batch, not by this batch's: else an example would count less for sharing
            # a batch, and the gradient of an epoch would depend on how the batches were cut.
            return (batch["weights"] * per_example).sum() * (batches / weight)

        return Objective(lambda batch: collate([examples[index] for index in batch]), loss)

    lengths = [len(example) for example in examples]
    numbers = fit(
        policy,
        lengths,
        objective,
        settings,
        folder,
        lora=lora,
        attention=attention,
        chat_template=chat_template,
        on_step=on_step,
    )
    numbers["examples"] = len(examples)
    numbers["tokens"] = settings.epochs * sum(lengths)
    numbers["written"] = settings.epochs * sum(example.policy_tokens for example in examples)
    folder.finish(numbers)
    return numbers


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises.

    Attributes:
        collate: Makes the tensors of a batch from the indices of its members.
        loss: Computes the loss from the model and these tensors.
    """

    collate: Callable[[Sequence[int]], Batch]
    loss: Callable[[Model, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process computes of a batch.

    Attributes:
        members: Indices of sequences, at least one: every process must take part in every step.
        counts: Whether they are its own; otherwise they stand in for none, and their loss is 0.
    """

    members: Sequence[int]
    counts: bool = True


def shares(batch: Sequence[int], processes: int) -> list[Share]:
    """Divides a batch among processes, which take of a dataset every n-th element each."""
    own = [batch[process::processes] for process in range(processes)]
    return [Share(members) if members else Share(batch[:1], counts=False) for members in own]


def fit(
    policy: str,
    lengths: Sequence[int],
    make_objective: Callable[[Model, float], Objective],
    settings: SupervisedSettings,
    folder: UpdateFolder,
    *,
    lora: LoraSettings | None,
    attention: str | None,
    chat_template: str | None,
    on_step: OnStep | None,
) -> Numbers:
    """Minimises an objective to the last step, from the last checkpoint on, and saves the policy.

    Args:
        policy: Weights to start from.
        lengths: Tokens of each sequence or pair of sequences, (n,).
        make_objective: Called with the model as it is before the first step, and the mean number of batches per epoch.
        settings: Hyperparameters of the update.
        folder: The update's folder; it must not be complete.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        chat_template: As in `LocalAgent`; the new policy keeps it.
        on_step: Called after each step.

    Returns:
        `steps`, `losses` (mean of each epoch), `loss` (of the last), `seconds` (in steps).
    """
    model, tokenizer = load_policy(policy, lora=lora, attention=attention, chat_template=chat_template)

    import torch
    import transformers

    from fate_gym.trainers.algorithms._transformers import BatchTrainer, make_arguments, save_trained, train_to_end

    if lora is not None:
        # `Trainer` would set its seed only after the adapters were made.
        model = with_adapters(model, lora, settings.seed)
    epochs = [
        token_batches(lengths, settings.batch_tokens, f"{settings.seed}/{epoch}") for epoch in range(settings.epochs)
    ]
    batches = [batch for epoch in epochs for batch in epoch]
    # Gradients are averaged over processes, each of which computes its share of every batch: the sum is what counts.
    processes = process_count()
    objective = make_objective(model, processes * len(batches) / settings.epochs)
    trainer = BatchTrainer(
        model=model,
        args=make_arguments(
            transformers.TrainingArguments,
            folder,
            report_to=settings.report_to,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            # The batches are made and shuffled already, for all epochs: a resumed update skips those that are done.
            train_sampling_strategy="sequential",
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(settings.warmup * len(batches)),
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            save_steps=settings.save_every,
            seed=settings.seed,
        ),
        train_dataset=[share for batch in batches for share in shares(batch, processes)],
        data_collator=lambda rows: {
            **objective.collate(rows[0].members),
            "counts": torch.tensor(float(rows[0].counts)),
        },
        loss=objective.loss,
    )
    train_to_end(trainer, folder, on_step)
    save_trained(trainer, policy, tokenizer, folder.out)
    steps = folder.steps()
    ends = list(itertools.accumulate(map(len, epochs)))
    losses = [
        statistics.fmean(step.number("loss") for step in steps[end - len(epoch) : end])
        for end, epoch in zip(ends, epochs, strict=True)
    ]
    return {
        "steps": len(steps),
        "losses": losses,
        "loss": losses[-1],
        "seconds": round(sum(step.number("seconds") for step in steps), 3),
    }
