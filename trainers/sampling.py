"""Who samples episodes with the policy's present weights: this process, or a server. All rollouts come through here.

A policy is met in two forms: as a folder of weights, between updates, and as the model that a trainer is changing,
within one. `Sampler` turns either into an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from fate_gym.agents import Agent
from fate_gym.trainers.policy import Model, Options


class Sampler(Protocol):
    """Makes agents of the policy.

    Attributes:
        is_exact: Whether the log-probabilities of its samples are those of the trainer's own arithmetic and weights.
            Otherwise the update corrects for the difference.
        overlaps: Whether an agent of `learner` is to play while the trainer goes on, with the weights that it was made
            for.
    """

    is_exact: bool
    overlaps: bool

    def agent(self, policy: str, **options: Any) -> Agent:
        """Returns an agent that plays the weights in a folder or on the hub; the caller closes it.

        Args:
            policy: The weights.
            **options: Options of `LocalAgent`, such as temperature and seed; they win over those of the settings.
        """
        ...

    def learner(self, trainer: Any, policy: str, **options: Any) -> contextlib.AbstractContextManager[Agent]:
        """Yields an agent that plays the weights of a trainer as they are now, and closes it.

        Every process that trains must call it at the same time.

        Args:
            trainer: A trainer of transformers whose model learns.
            policy: The weights that its update started from.
            **options: As in `agent`.
        """
        ...


class LocalSampler:
    """Samples in this process.

    Args:
        options: Options of `LocalAgent`.
        attention: transformers' `attn_implementation`.
    """

    is_exact = True
    overlaps = False

    def __init__(self, options: Options, attention: str | None = None) -> None:
        self._options = {"attention": attention, **options}

    def agent(self, policy: str, **options: Any) -> Agent:
        """Returns an agent that loads the weights."""
        from fate_gym.agents.local import LocalAgent

        return LocalAgent(policy, **{**self._options, **options})

    @contextlib.contextmanager
    def learner(self, trainer: Any, policy: str, **options: Any) -> Iterator[Agent]:
        """Yields an agent over the trainer's own model."""
        from trl.models.utils import unwrap_model_for_generation

        from fate_gym.agents.local import LocalAgent

        with contextlib.ExitStack() as held:
            model = held.enter_context(
                unwrap_model_for_generation(
                    trainer.model_wrapped,
                    trainer.accelerator,
                    gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
                )
            )
            held.enter_context(whole_weights(model, trainer.accelerator))
            # Dropout would sample from another distribution than the one whose log-probabilities the loss takes.
            model.eval()
            agent = LocalAgent.over(model, trainer.processing_class, **{**self._options, **options})
            try:
                yield agent
            finally:
                asyncio.run(agent.aclose())
        trainer.model.train()


@contextlib.contextmanager
def whole_weights(model: Model, accelerator: Any) -> Iterator[None]:
    """Lets every process hold all weights of a model that FSDP2 has sharded; other models are left as they are.

    Sampling must not gather weights layer by layer, as training does: episodes have different lengths, and a process
    whose episodes have ended would no longer take part. Gathered once, every process samples as long as it needs.
    """
    from torch.distributed.fsdp import FSDPModule

    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(accelerator.state.fsdp_plugin.reshard_after_forward, recurse=False)
            module.reshard()
