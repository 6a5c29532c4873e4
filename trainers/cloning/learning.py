"""Behaviour cloning: cross-entropy on the policy's tokens in scripted episodes, in a plain loop with checkpoints."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fate_gym.agents.chat_format import one_line
from fate_gym.errors import RunCorruptError
from fate_gym.storage import replace_file
from fate_gym.trainers.cloning.encoding import EncodedEpisode
from fate_gym.trainers.cloning.settings import CloningSettings

if TYPE_CHECKING:
    from torch import Tensor

OnProgress: TypeAlias = Callable[[int, int, float], None]
"""Called after every step with the steps done, all steps, and the loss of this step on policy tokens."""

_DRAWN_TOGETHER = 512  # Episodes that are sorted by length before they are cut into batches.
_CONTEXT_EVERY = 4  # Every fourth step learns the other tokens too, which take most of the output layer's time.


def plan_batches(runs: Sequence[EncodedEpisode], settings: CloningSettings) -> list[list[int]]:
    """Draws the batches of all steps: a kind by the mixture's shares, then an episode of that kind uniformly.

    Returns:
        For each step the indices of episodes of similar length, with padding at most `tokens_per_step` tokens.

    Raises:
        ValueError: There is no episode of a kind that the mixture asks for.
    """
    by_kind: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        by_kind.setdefault(run.kind, []).append(index)
    # A share that should be 0 may be a little above or below it after rounding.
    shares = {kind: share for kind, share in settings.mixture.shares().items() if share > 1e-9}
    if missing := sorted(shares.keys() - by_kind.keys()):
        raise ValueError(f"the mixture asks for kinds of episodes that do not exist here: {', '.join(missing)}")
    rng = random.Random(f"fate-gym cloning {settings.seed}")  # noqa: S311 (no secret)
    batches: list[list[int]] = []
    while len(batches) < settings.steps:
        kinds = rng.choices(list(shares), list(shares.values()), k=_DRAWN_TOGETHER)
        drawn = sorted((rng.choice(by_kind[kind]) for kind in kinds), key=lambda index: len(runs[index].ids))
        # Sorted by length before they are cut, then shuffled: little padding, and no order by length in training.
        cut = _cut(drawn, [len(run.ids) for run in runs], settings.tokens_per_step)
        rng.shuffle(cut)
        batches += cut
    return batches[: settings.steps]


def clone(
    model: Any,
    runs: Sequence[EncodedEpisode],
    settings: CloningSettings,
    checkpoint: Path,
    *,
    digest: str,
    on_progress: OnProgress,
) -> dict[str, float]:
    """Trains a model in place.

    Args:
        model: A transformers causal language model, perhaps with adapters, then the only weights that learn.
        runs: The episodes to learn.
        settings: Hyperparameters of cloning.
        checkpoint: The file that holds the state every `checkpoint_every` steps, and from which cloning is resumed.
        digest: Digest of settings and data; a checkpoint with another digest is ignored.
        on_progress: Called after every step.

    Returns:
        `tokens`, padding included, and `loss`, the mean on policy tokens over the last twentieth of the steps.

    Raises:
        RunCorruptError: The checkpoint is damaged.
    """
    import torch

    # A second beta of 0.98 instead of 0.999: the run is too short for a long average of squared gradients.
    learned = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    batches = plan_batches(runs, settings)
    losses = _resume(checkpoint, digest, model, optimizer, schedule)
    model.train()
    for step in range(len(losses), len(batches)):
        batch = [runs[index] for index in batches[step]]
        loss, policy_loss = _losses(model, batch, settings.context_weight if step % _CONTEXT_EVERY == 0 else 0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(policy_loss)
        if len(losses) % settings.checkpoint_every == 0:
            states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            _save(checkpoint, {"digest": digest, "losses": losses, "model": _learned(model), **states})
        on_progress(len(losses), len(batches), policy_loss)
    model.eval()
    last = losses[-max(1, len(losses) // 20) :]
    tokens = sum(len(batch) * max(len(runs[index].ids) for index in batch) for batch in batches)
    return {"tokens": tokens, "loss": sum(last) / len(last)}


def _cut(drawn: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cuts episodes, sorted by length, into batches; an episode above the limit has a batch of its own."""
    batches: list[list[int]] = []
    for index in drawn:
        if batches and (len(batches[-1]) + 1) * lengths[index] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _rate(step: int, settings: CloningSettings) -> float:
    """Returns the learning rate as a share of its peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return max(0.05, 1 - 0.95 * (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))


def _losses(model: Any, batch: Sequence[EncodedEpisode], context_weight: float) -> tuple[Tensor, float]:
    """Returns the loss to minimise, and its part on policy tokens; both are divided by the number of policy tokens."""
    import torch

    longest = max(len(run.ids) for run in batch)

    def padded(rows: Sequence[list[int]]) -> Tensor:
        # On the right, where no real token of a causal model attends to: no attention mask is needed.
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)

    ids = padded([run.ids for run in batch])
    policy_tokens = padded([run.mask for run in batch]).bool()[:, 1:]
    learned = padded([[1] * len(run.ids) for run in batch]).bool()[:, 1:] if context_weight else policy_tokens
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        # At the learned positions alone: a vocabulary of 50,000 would else take most of the memory.
        logits = model.get_output_embeddings()(hidden[learned])
    entropies = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    own = policy_tokens[learned]
    count = policy_tokens.sum()
    # Divided by the number of policy tokens in both cases, so that steps with context tokens weigh the policy alike.
    loss = torch.where(own, entropies, context_weight * entropies).sum() / count
    return loss, float(entropies.detach()[own].sum() / count)


def _resume(checkpoint: Path, digest: str, model: Any, optimizer: Any, schedule: Any) -> list[float]:
    """Loads the checkpoint of this very training, if there is one, and returns the losses so far."""
    import torch

    if not checkpoint.exists():
        return []
    try:
        state: Mapping[str, Any] = torch.load(checkpoint, weights_only=True)
        if state["digest"] != digest:
            return []
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        return list(state["losses"])
    except Exception as error:
        # torch raises a different error for every kind of damage.
        raise RunCorruptError(f"{checkpoint} cannot be read ({one_line(error)}): delete it to begin anew") from error


def _learned(model: Any) -> dict[str, Tensor]:
    """The weights that learn; frozen ones are where cloning starts from."""
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def _save(checkpoint: Path, state: Mapping[str, Any]) -> None:
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    replace_file(checkpoint, content.getvalue())
