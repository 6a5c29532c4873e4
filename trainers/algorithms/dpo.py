"""DPO on pairs (repair, failure): a baseline for PFPO (Rafailov et al., 2023).

    L = -log sigmoid(beta [(log pi(a*|x) - log pi_0(a*|x)) - (log pi(a|x) - log pi_0(a|x))])

where log pi sums over the tokens that the policy wrote, and pi_0 is the policy that training begins with.

TRL's `DPOTrainer` (1.16) cannot be given this: it always writes and tokenises the conversations anew, and counts what
tools said among the tokens whose likelihood it raises and lowers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fate_gym.trainers.fitting import FitSettings, Objective, fit
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.sequences import Batch, Example, collate, digest, log_probs
from fate_gym.trainers.training import OnStep, TrainingFolder


@dataclass(frozen=True, slots=True)
class Pair:
    """Two episodes of one task. Their weights are not read.

    Attributes:
        chosen: The better one, a*.
        rejected: The worse one, a.
    """

    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True)
class DPOSettings(FitSettings):
    """How DPO learns.

    Attributes:
        beta: Strength of the pull to the first policy.

    Raises:
        ValueError: A number is out of its range.
    """

    beta: float = 0.1
    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        # A class with slots is made anew by `dataclass`, and `super()` would look in the old one.
        FitSettings.__post_init__(self)
        if self.beta <= 0:
            raise ValueError("beta must be positive")


def dpo(
    policy: str | Path,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    attention: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Learns from pairs and saves the policy (see `save_policy`); goes on where a kill left it.

    Args:
        policy: The policy to begin with, and to stay near.
        pairs: What to learn.
        settings: How.
        out: The folder.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        on_step: Called after each step.

    Returns:
        `steps`, `pairs`, `tokens` (of all sequences seen), `losses` (mean of each epoch), `loss` (of the last),
        `seconds` (in steps).

    Raises:
        ValueError: There is no pair.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds a training of other settings or pairs.
        FateGymError: The loss or the gradient is not finite.
    """
    if not pairs:
        raise ValueError("there is nothing to learn from: no pairs")
    examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
    told = {"stage": "dpo", "pairs": digest(examples), "lora": lora and dataclasses.asdict(lora)}
    folder = TrainingFolder(out, {**told, **dataclasses.asdict(settings)})
    if folder.finished is not None:
        return folder.finished

    def objective(model: Any, batches: float) -> Objective:
        margins = [_reference_margin(model, pair) for pair in pairs]

        def make(batch: Sequence[int]) -> Batch:
            import torch

            chosen = [pairs[index].chosen for index in batch]
            rejected = [pairs[index].rejected for index in batch]
            return {**collate([*chosen, *rejected]), "margins": torch.tensor([margins[index] for index in batch])}

        def loss(model: Any, batch: Batch) -> Any:
            from torch.nn.functional import logsigmoid

            logits = settings.beta * (_margins(model, batch) - batch["margins"])
            return -logsigmoid(logits).sum() * (batches / len(pairs))

        return Objective(make, loss)

    lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    numbers = fit(policy, lengths, objective, settings, folder, lora=lora, attention=attention, on_step=on_step)
    numbers["pairs"] = len(pairs)
    numbers["tokens"] = settings.epochs * sum(map(len, examples))
    folder.finish(numbers)
    return numbers


def _margins(model: Any, batch: Batch) -> Any:
    """How much likelier the chosen is than the rejected, in natural log; the chosen are the first half, (n,)."""
    chosen, rejected = log_probs(model, batch).sum(-1).chunk(2)
    return chosen - rejected


def _reference_margin(model: Any, pair: Pair) -> float:
    import torch

    device = model.device
    # Under the same arithmetic as in training.
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        batch = {name: tensor.to(device) for name, tensor in collate([pair.chosen, pair.rejected]).items()}
        return float(_margins(model.eval(), batch))
