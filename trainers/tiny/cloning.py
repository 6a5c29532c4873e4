"""Behaviour cloning: cross-entropy on what scripted runs say, in a plain loop that a kill hardly sets back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fate_gym.trainers.tiny.settings import TinySettings

if TYPE_CHECKING:
    from torch import Tensor

OnProgress: TypeAlias = Callable[[int, int, float], None]
"""Told after every step: steps done, steps in all, the step's loss on policy tokens."""

_DRAWN_TOGETHER = 512  # Runs that are sorted by length before they are cut into batches.
_CONTEXT_EVERY = 4  # One step in so many learns the other tokens too: they cost most of the output layer's time.


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """A run as token ids.

    Attributes:
        kind: What it shows (`demonstrations.Kind`).
        ids: (n,).
        mask: 1 where the policy writes the token, (n,).
    """

    kind: str
    ids: list[int]
    mask: list[int]


def plan_batches(runs: Sequence[EncodedRun], settings: TinySettings) -> list[list[int]]:
    """Draws every step's batch at once, by kind after the mixture and evenly within a kind.

    Returns:
        Indices of runs of like length, a list a step, padded together at most `tokens_per_step` tokens.

    Raises:
        ValueError: There is no run of a kind that the mixture asks for.
    """
    by_kind: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        by_kind.setdefault(run.kind, []).append(index)
    # Rounding may leave a share that should be 0 a little above or below.
    shares = {kind: share for kind, share in settings.mixture.shares().items() if share > 1e-9}
    if missing := sorted(shares.keys() - by_kind.keys()):
        raise ValueError(f"the mixture asks for runs of kinds that there are none of: {', '.join(missing)}")
    rng = random.Random(f"fate-gym cloning {settings.seed}")  # noqa: S311 (no secret)
    batches: list[list[int]] = []
    while len(batches) < settings.steps:
        kinds = rng.choices(list(shares), list(shares.values()), k=_DRAWN_TOGETHER)
        drawn = sorted((rng.choice(by_kind[kind]) for kind in kinds), key=lambda index: len(runs[index].ids))
        cut = _cut(drawn, [len(run.ids) for run in runs], settings.tokens_per_step)
        rng.shuffle(cut)
        batches += cut
    return batches[: settings.steps]


def clone(
    model: Any,
    runs: Sequence[EncodedRun],
    settings: TinySettings,
    checkpoint: Path,
    *,
    digest: str,
    on_progress: OnProgress,
) -> dict[str, float]:
    """Trains a model in place.

    Args:
        model: A transformers causal language model without dropout.
        runs: What to learn.
        settings: How.
        checkpoint: Where it saves its state every `checkpoint_every` steps, and goes on from.
        digest: Names what is trained on what; a checkpoint of another digest is not gone on from.
        on_progress: Told after every step.

    Returns:
        `tokens`, padding included, and `loss`, the mean on policy tokens over the last twentieth of the steps.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    batches = plan_batches(runs, settings)
    losses = _resume(checkpoint, digest, model, optimizer, schedule)
    model.train()
    for step in range(len(losses), len(batches)):
        batch = [runs[index] for index in batches[step]]
        loss, policy_loss = _losses(model, batch, settings.context_weight if step % _CONTEXT_EVERY == 0 else 0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(policy_loss)
        if len(losses) % settings.checkpoint_every == 0:
            state = {"model": model, "optimizer": optimizer, "schedule": schedule}
            _save(checkpoint, {"digest": digest, "losses": losses} | {n: s.state_dict() for n, s in state.items()})
        on_progress(len(losses), len(batches), policy_loss)
    model.eval()
    last = losses[-max(1, len(losses) // 20) :]
    tokens = sum(len(batch) * max(len(runs[index].ids) for index in batch) for batch in batches)
    return {"tokens": tokens, "loss": sum(last) / len(last)}


def _cut(drawn: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cuts runs, the shortest first, into batches; one that is too long alone has a batch of its own."""
    batches: list[list[int]] = []
    for index in drawn:
        if batches and (len(batches[-1]) + 1) * lengths[index] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _rate(step: int, settings: TinySettings) -> float:
    """The learning rate as a share of its peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return max(0.05, 1 - 0.95 * (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))


def _losses(model: Any, batch: Sequence[EncodedRun], context_weight: float) -> tuple[Tensor, float]:
    """The loss to descend, and its part on the policy's own tokens; both a mean over these."""
    import torch

    longest = max(len(run.ids) for run in batch)
    # Padded on the right, where a causal model's other tokens do not see it: no attention mask is needed.
    ids = torch.tensor([run.ids + [0] * (longest - len(run.ids)) for run in batch])
    written = torch.tensor([run.mask + [0] * (longest - len(run.ids)) for run in batch], dtype=torch.bool)[:, 1:]
    learnt = written
    if context_weight:
        learnt = torch.tensor([[1] * len(run.ids) + [0] * (longest - len(run.ids)) for run in batch]).bool()[:, 1:]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[learnt])
    entropies = torch.nn.functional.cross_entropy(logits, ids[:, 1:][learnt], reduction="none")
    own = written[learnt]
    count = written.sum()
    loss = torch.where(own, entropies, context_weight * entropies).sum() / count
    return loss, float(entropies.detach()[own].sum() / count)


def _resume(checkpoint: Path, digest: str, model: Any, optimizer: Any, schedule: Any) -> list[float]:
    """Takes on a checkpoint of this very training, and returns the losses so far."""
    import torch

    if not checkpoint.exists():
        return []
    state: Mapping[str, Any] = torch.load(checkpoint, weights_only=True)
    if state["digest"] != digest:
        return []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["losses"])


def _save(checkpoint: Path, state: Mapping[str, Any]) -> None:
    import torch

    temporary = checkpoint.with_name(f"{checkpoint.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, checkpoint)
