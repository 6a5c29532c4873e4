"""DPO on pairs (repair, failure): a baseline for PFPO (Rafailov et al., 2023).

    L = -log sigmoid(beta [(log pi(a*|x) - log pi_0(a*|x)) - (log pi(a|x) - log pi_0(a|x))])

where log pi sums over the policy's own tokens, and pi_0 is the policy that the update starts from.

TRL's `DPOTrainer` (1.16) cannot be used: it always renders and tokenises the conversations again, and it raises and
lowers the likelihood of tool output too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fate_gym.trainers.algorithms.sequences import Batch, Example, collate, digest, log_probs
from fate_gym.trainers.algorithms.settings import DPOSettings
from fate_gym.trainers.algorithms.supervised import Objective, fit
from fate_gym.trainers.algorithms.update_folder import Numbers, OnStep, UpdateFolder
from fate_gym.trainers.policy import LoraSettings, Model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """Two episodes of one task. Their weights are ignored.

    Attributes:
        chosen: The better one, a*.
        rejected: The worse one, a.
    """

    chosen: Example
    rejected: Example


def dpo(
    policy: str,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    attention: str | None = None,
    chat_template: str | None = None,
    on_step: OnStep | None = None,
) -> Numbers:
    """Learns from pairs and saves the policy (see `save_policy`). An interrupted call is resumed by the same call.

    Args:
        policy: Weights to start from; they are also the reference.
        pairs: The preferences to learn.
        settings: Hyperparameters of the update.
        out: The update's folder.
        lora: Adapters, or None to learn all weights.
        attention: transformers' `attn_implementation`.
        chat_template: As in `LocalAgent`; the new policy keeps it.
        on_step: Called after each step.

    Returns:
        `steps`, `pairs`, `tokens` (of all sequences, over all epochs), `losses` (mean of each epoch), `loss` (of the
        last epoch), `seconds` (in steps).

    Raises:
        ValueError: There is no pair.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds an update with other settings or pairs.
        FateGymError: The loss or the gradient is not finite.
    """
    if not pairs:
        raise ValueError("there is nothing to learn from: no pairs")
    examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
    data = {"stage": "dpo", "pairs": digest(examples), "lora": lora and lora.to_json()}
    folder = UpdateFolder(out, {**data, **dataclasses.asdict(settings)})
    if folder.finished is not None:
        return folder.finished

    def objective(model: Model, batches: float) -> Objective:
        # Before the first step, when the model is still its own reference: no second copy is kept in memory.
        margins = [_reference_margin(model, pair) for pair in pairs]

        def make(batch: Sequence[int]) -> Batch:
            import torch

            chosen = [pairs[index].chosen for index in batch]
            rejected = [pairs[index].rejected for index in batch]
            return {**collate([*chosen, *rejected]), "margins": torch.tensor([margins[index] for index in batch])}

        def loss(model: Model, batch: Batch) -> Tensor:
            from torch.nn.functional import logsigmoid

            logits = settings.beta * (_margins(model, batch) - batch["margins"])
            return -logsigmoid(logits).sum() * (batches / len(pairs))

        return Objective(make, loss)

    # Both sequences of a pair stand in one batch, padded to the longer one.
    lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
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
    numbers["pairs"] = len(pairs)
    numbers["tokens"] = settings.epochs * sum(map(len, examples))
    folder.finish(numbers)
    return numbers


def _margins(model: Model, batch: Batch) -> Tensor:
    """Log pi(chosen) - log pi(rejected) of each pair, (n,); the first half of the batch holds the chosen."""
    chosen, rejected = log_probs(model, batch).sum(-1).chunk(2)
    return chosen - rejected


def _reference_margin(model: Model, pair: Pair) -> float:
    import torch

    device = model.device
    # The same arithmetic as in training: else the margins of the first step would differ from 0 by rounding.
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        batch = {name: tensor.to(device) for name, tensor in collate([pair.chosen, pair.rejected]).items()}
        return float(_margins(model.eval(), batch))
