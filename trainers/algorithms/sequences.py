"""Sequences of token ids to learn from: examples, batches under a token budget, log-probabilities of policy tokens.

Policy tokens are the tokens that the policy sampled; the others are prompts and tool output, which it only reads. All
ids are those that were sampled or recorded: nothing is tokenised here, and no chat template is applied.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fate_gym.trainers.policy import Model

if TYPE_CHECKING:
    from torch import Tensor

Batch: TypeAlias = "dict[str, Tensor]"
"""Tensors of n examples and k positions: see `collate`."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence to learn from.

    Attributes:
        prompt_ids: Tokens before the policy's first turn, (p,).
        completion_ids: The tokens from there on: turns of the policy, and tool output between them, (c,).
        mask: 1 on policy tokens, 0 on the others, (c,).
        weight: Weight of this example in the loss.

    Raises:
        ValueError: The mask has another length or marks nothing, the prompt is empty, or the weight is not positive.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[int]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.mask) != len(self.completion_ids):
            raise ValueError(f"a mask of {len(self.mask)} for {len(self.completion_ids)} tokens")
        if not self.prompt_ids or 1 not in self.mask or not self.weight > 0:
            # Without a prompt no token would precede the first one, which could then not be predicted.
            raise ValueError("an example needs a prompt, a policy token, and a weight above 0")

    def __len__(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def policy_tokens(self) -> int:
        """Number of policy tokens."""
        return sum(self.mask)


def digest(examples: Sequence[Example]) -> str:
    """Returns the SHA-256, in hex, of examples in their order."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(repr((*map(list, (example.prompt_ids, example.completion_ids, example.mask)),)).encode())
        whole.update(repr(example.weight).encode())
    return whole.hexdigest()


def token_batches(lengths: Sequence[int], budget: int, seed: str) -> list[list[int]]:
    """Groups examples of similar lengths into batches, each of at most `budget` tokens with its padding.

    Args:
        lengths: Tokens of each example, (n,).
        budget: Most tokens of a batch; an example longer than that has a batch of its own.
        seed: Decides which examples share a batch, and the order of batches.

    Returns:
        For each batch the indices of its examples; each index stands in one batch.
    """
    rng = random.Random(seed)  # noqa: S311 (no secret)
    # With the jitter, batches differ from epoch to epoch, and still waste little on padding.
    order = sorted(range(len(lengths)), key=lambda index: lengths[index] * rng.uniform(0.8, 1.25))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    rng.shuffle(batches)
    return batches


def collate(examples: Sequence[Example]) -> Batch:
    """Pads examples on the right.

    Returns:
        `input_ids` and `attention_mask`, int (n, l); `positions`, those before a policy token of any example, int (k,);
        `targets`, the tokens that follow these positions, int (n, k); `policy_tokens`, 1 where the target is a policy
        token, float (n, k); `weights`, float (n,).
    """
    import torch

    length = max(map(len, examples))
    ids, attention, mask = (torch.zeros(len(examples), length, dtype=torch.long) for _ in range(3))
    for row, example in enumerate(examples):
        prompt, end = len(example.prompt_ids), len(example)
        ids[row, :end] = torch.tensor([*example.prompt_ids, *example.completion_ids])
        attention[row, :end] = 1
        mask[row, prompt:end] = torch.tensor(list(example.mask))
    # The logits at position t predict token t + 1.
    positions = mask.any(dim=0).nonzero().squeeze(-1) - 1
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "positions": positions,
        "targets": ids[:, positions + 1],
        "policy_tokens": mask[:, positions + 1].float(),
        "weights": torch.tensor([example.weight for example in examples]),
    }


def log_probs(model: Model, batch: Batch) -> Tensor:
    """Returns the natural-log probability of each policy token, 0 elsewhere, float32 (n, k).

    Logits are computed at these positions alone: over the whole sequence they would take most of the memory.

    Args:
        model: A transformers causal language model, perhaps with an adapter, perhaps wrapped for several processes.
        batch: From `collate`, on the model's device.
    """
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=batch["positions"],
        use_cache=False,
    ).logits
    # In float32: a bfloat16 log-probability of -0.01 is off by a tenth of itself.
    chosen = logits.float().log_softmax(-1).gather(-1, batch["targets"][..., None]).squeeze(-1)
    return chosen * batch["policy_tokens"]
