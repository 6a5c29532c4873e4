"""Stage 5: policy optimisation (PFPO) from the warmed policy, on groups of rollouts of the plain tasks."""

from __future__ import annotations

import dataclasses

from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.marks import Origin, mark
from fate_gym.trainers.round import Round


def optimise(warmed: str, this_round: Round) -> str:
    """Optimises the policy on the training tasks.

    Args:
        warmed: The weights to start from; they are also the reference of the KL.
        this_round: The round.

    Returns:
        The folder of the new policy; `warmed` itself if the method does not optimise.

    Raises:
        RunMismatchError: The folder of the optimisation was made from other tasks or settings.
        FateGymError: The loss or the gradient is not finite, or no rollout of a step could be scored.
    """
    config, method = this_round.config, this_round.method
    if config.pfpo is None or not method.optimises:
        return warmed
    # A group has seeds of its own, so of the repeats of a task one item is enough: the first.
    items = {(item.env_index, item.task_id): item for item in reversed(this_round.items)}
    settings = dataclasses.replace(config.pfpo, rule=method.rule or config.pfpo.rule, seed=this_round.seed("pfpo"))
    tokens = this_round.tokens_for("pfpo")
    if tokens is not None:
        if tokens < settings.groups * settings.group_size:
            this_round.skip("pfpo", "the budget is spent")
            return warmed
        # A rollout has a token at least, so that the tokens end before the steps do.
        settings = dataclasses.replace(settings, tokens=tokens, steps=tokens // (settings.groups * settings.group_size))
    out = this_round.path / "pfpo"
    with this_round.update("pfpo", 0 if tokens else settings.steps) as on_step:
        optimise_policy(
            warmed,
            this_round.plan,
            list(reversed(items.values())),
            settings,
            out,
            lora=config.lora,
            sampler=this_round.sampler,
            agent_options=config.agent,
            attention=config.attention,
            on_step=on_step,
        )
        # Every task counts as learned from: groups are sampled from any of them.
        tasks = [this_round.plan.task(item) for item in this_round.items]
        mark(out, [Origin.of(task.suite, task.metadata) for task in tasks], earlier=warmed, **this_round.provenance)
    return str(out)
