"""Stage 4, warm-up: supervised learning on repairs, before PFPO.

    L = sum_i w_i L_i / sum_i w_i,   L_i = -(1 / |a_i|) sum_t m_it log pi(a_it | p_i, a_i<t)

with m = 1 on the tokens that the policy wrote and |a_i| their number (FATE, section 4.3). The same code is two
baselines: SFT on repairs alone, and RFT, which is this on successes.

TRL's `SFTTrainer` (1.16) would not do: it drops example weights, cannot batch by tokens, and takes private overrides to
be given ids with a mask, which is all that there is to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fate_gym.trainers.fitting import FitSettings, Objective, fit
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.sequences import Batch, Example, collate, digest, log_probs
from fate_gym.trainers.training import OnStep, TrainingFolder


def warm_up(
    policy: str | Path,
    examples: Sequence[Example],
    settings: FitSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    attention: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Learns from examples and saves the policy (see `save_policy`); goes on where a kill left it.

    Args:
        policy: The policy to begin with.
        examples: What to learn.
        settings: How.
        out: The folder.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        on_step: Called after each step.

    Returns:
        `steps`, `examples`, `tokens` (of all sequences seen), `written` (those of them that were learned), `losses`
        (mean of each epoch), `loss` (of the last), `seconds` (in steps).

    Raises:
        ValueError: There is no example.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds a training of other settings or examples.
        FateGymError: The loss or the gradient is not finite.
    """
    if not examples:
        raise ValueError("there is nothing to learn from: no examples")
    told = {"stage": "warmup", "examples": digest(examples), "lora": lora and dataclasses.asdict(lora)}
    folder = TrainingFolder(out, {**told, **dataclasses.asdict(settings)})
    if folder.finished is not None:
        return folder.finished
    weight = sum(example.weight for example in examples)

    def objective(model: Any, batches: float) -> Objective:
        def loss(model: Any, batch: Batch) -> Any:
            per_example = -log_probs(model, batch).sum(-1) / batch["written"].sum(-1)
            # By the mean weight of a batch, not its own: else an example would count less for sharing a batch.
            return (batch["weights"] * per_example).sum() * (batches / weight)

        return Objective(lambda batch: collate([examples[index] for index in batch]), loss)

    lengths = [len(example) for example in examples]
    numbers = fit(policy, lengths, objective, settings, folder, lora=lora, attention=attention, on_step=on_step)
    numbers["examples"] = len(examples)
    numbers["tokens"] = settings.epochs * sum(lengths)
    numbers["written"] = settings.epochs * sum(example.written for example in examples)
    folder.finish(numbers)
    return numbers
