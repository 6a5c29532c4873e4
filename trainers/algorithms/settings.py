"""Hyperparameters of the updates: supervised learning, DPO, and policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from fate_gym.trainers.algorithms.advantages import RULES


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """Hyperparameters of learning from a fixed set of sequences.

    Attributes:
        epochs: Passes over the sequences.
        learning_rate: Peak learning rate of AdamW; 1e-4 suits adapters, 1e-5 all weights of a large model.
        warmup: Share of the steps over which the learning rate rises; after them it falls linearly to 0.
        batch_tokens: Most tokens of a batch, padding included.
        max_grad_norm: Gradients are clipped to this norm.
        gradient_checkpointing: Whether to recompute activations in the backward pass, which saves memory.
        save_every: Steps between checkpoints.
        report_to: Experiment trackers that log every step, by their names in transformers.
        seed: Decides the order of the sequences, and the adapters' initial weights.

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
class DPOSettings(SupervisedSettings):
    """Hyperparameters of DPO.

    Attributes:
        beta: Strength of the pull towards the initial policy.

    Raises:
        ValueError: A number is out of its range.
    """

    beta: float = 0.1
    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        # `dataclass(slots=True)` creates a second class, so that `super()` would look in the first one and fail.
        SupervisedSettings.__post_init__(self)
        if self.beta <= 0:
            raise ValueError("beta must be positive")


@dataclass(frozen=True, slots=True)
class PFPOSettings:
    """Hyperparameters of policy optimisation.

    Attributes:
        rule: Advantage rule, a name in `advantages.RULES`.
        steps: Batches of rollouts. Each gives one update per pass.
        groups: Groups in a batch, over all processes; a multiple of the number of processes.
        group_size: Rollouts in a group, G.
        refills: How often a group without a signal is replaced by a group of another task.
        temperature: Temperature of sampling, and of the log-probabilities in the loss.
        learning_rate: Learning rate of AdamW; 1e-5 suits adapters, 1e-6 all weights of a large model.
        beta: Weight of the KL divergence from the policy that the update starts from.
        clip: e of the clipped loss; it has an effect from the second pass on.
        passes: Updates per batch of rollouts.
        micro_batch: Rollouts in one forward and backward pass of a process. Small values waste less on padding.
        max_grad_norm: Gradients are clipped to this norm.
        gradient_checkpointing: Whether to recompute activations in the backward pass, which saves memory.
        concurrency: Episodes that run at the same time in a process.
        tokens: Policy tokens to sample, after which the update ends; None for all of `steps`. It ends at the step that
            comes nearest to them.
        save_every: Batches between checkpoints; after a kill, the batches since the last one are sampled again.
        report_to: Experiment trackers that log every step, by their names in transformers.
        seed: Decides tasks, samples, and the adapters' initial weights.

    Raises:
        ValueError: A number is out of its range, or the rule does not exist.
    """

    rule: str = "safe-tchebycheff"
    steps: int = 20
    groups: int = 8
    group_size: int = 8
    refills: int = 2
    temperature: float = 1.0
    learning_rate: float = 1e-5
    beta: float = 0.02
    clip: float = 0.2
    passes: int = 1
    micro_batch: int = 8
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    concurrency: int = 128
    tokens: int | None = None
    save_every: int = 5
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"no advantage rule {self.rule!r}; there are: {', '.join(RULES)}")
        counts = (self.steps, self.groups, self.passes, self.micro_batch, self.concurrency, self.save_every)
        if min(counts) < 1 or self.group_size < 2 or self.refills < 0:
            raise ValueError(
                "steps, groups, passes, micro_batch, concurrency and save_every must be at least 1, group_size at "
                "least 2, refills at least 0"
            )
        if min(self.temperature, self.learning_rate, self.clip, self.max_grad_norm) <= 0 or self.beta < 0:
            raise ValueError("temperature, learning_rate, clip and max_grad_norm must be positive, beta at least 0")
