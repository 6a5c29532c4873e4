"""Stage 5, PFPO: policy optimisation on groups of rollouts, with advantages from whole reward vectors.

    L = -1/G sum_i 1/|a_i| sum_t m_it min(rho_it A_i, clip(rho_it, 1 - e, 1 + e) A_i) + beta KL(pi || pi_ref)

(FATE, section 4.4 f), with advantages A by a rule of `advantages.RULES` and, as reference, the policy that training
begins with. Weighted-sum GRPO, GDPO and security-only GRPO run here too, with TRL's own advantages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fate_gym.rewards import AXES
from fate_gym.trainers.advantages import RULES
from fate_gym.trainers.episodes import Item, TaskPool
from fate_gym.trainers.groups import GroupSampler
from fate_gym.trainers.policy import LoraSettings, load_policy, lora_config, save_policy
from fate_gym.trainers.training import OnStep, TrainingFolder

BY_TRL: dict[str, dict[str, Any]] = {
    "weighted-sum": {},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
    "security-only": {"reward_weights": [float(axis == "security") for axis in AXES]},
}
"""Rules that TRL computes itself, and the arguments that ask for them."""


@dataclass(frozen=True, slots=True)
class PFPOSettings:
    """How PFPO samples and learns.

    Attributes:
        rule: A name in `advantages.RULES`.
        steps: Batches of rollouts, and updates for each pass over one.
        groups: Groups in a batch, over all processes; a multiple of their number.
        group_size: Rollouts in a group, G.
        refills: Times that a group without a signal is sampled anew, from another task.
        temperature: Of sampling, and of the log-probabilities in the loss.
        learning_rate: AdamW's; 1e-5 fits adapters, 1e-6 all weights of a large model.
        beta: Weight of the KL to the policy that training begins with.
        clip: e of the clipped loss; it acts from the second pass on.
        passes: Updates for each batch.
        micro_batch: Rollouts in one forward and backward pass of a process; on a CPU few, which pads less.
        max_grad_norm: Gradients are clipped to this norm.
        gradient_checkpointing: Whether to trade time for memory.
        concurrency: Episodes under way at once in a process.
        save_every: Batches between checkpoints; what a kill loses is sampled again.
        report_to: Trackers that are told of every step.
        seed: Decides tasks, samples, and the adapters' first weights.

    Raises:
        ValueError: A number is out of its range, or there is no such rule.
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


def optimise(
    policy: str | Path,
    pool: TaskPool,
    items: Sequence[Item],
    settings: PFPOSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    agent_options: Mapping[str, Any] | None = None,
    attention: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Optimises a policy on its own rollouts and saves it (see `save_policy`); goes on where a kill left it.

    It runs an event loop of its own to sample: do not call it from within another.

    Args:
        policy: The policy to begin with, and to stay near.
        pool: The environments.
        items: The tasks; a group is one of them with seeds of its own.
        settings: How.
        out: The folder.
        lora: Adapters, or None to learn all weights.
        agent_options: Of `LocalAgent`, such as `max_new_tokens` and `max_batch`.
        attention: transformers' `attn_implementation`.
        on_step: Called after each step.

    Returns:
        `steps`; `rollouts` and `tokens` that were sampled, in groups that were replaced too; `unscored` rollouts;
        `refilled` groups; `signal`, the mean share of groups with one; `vector` by axis over all tasks drawn, `kl` and
        `loss`, means over the last fifth of the steps; `seconds`, and `seconds_sampling` of them.

    Raises:
        ValueError: There is no task, groups do not divide among processes, or `agent_options` change the distribution.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds a training of other settings or tasks.
        FateGymError: The loss or the gradient is not finite, or no rollout of a step could be scored.
    """
    if not items:
        raise ValueError("there is nothing to optimise on: no tasks")
    if given := {"temperature", "top_p", "seed"} & set(agent_options or {}):
        raise ValueError(f"agent_options hold {min(given)}: PFPO samples with the temperature and seed of its settings")
    keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
    told = {"stage": "pfpo", "items": keys, "lora": lora and dataclasses.asdict(lora)}
    folder = TrainingFolder(out, {**told, **dataclasses.asdict(settings), "agent": dict(agent_options or {})})
    if folder.finished is not None:
        return folder.finished
    model, tokenizer = load_policy(policy, lora=lora is not None, attention=attention)

    from fate_gym.trainers.pfpo_trainer import PFPOTrainer, Rollouts, by_rule, config
    from fate_gym.trainers.transformers_trainers import run

    sampler = GroupSampler(
        pool, items, settings.rule, settings.group_size, settings.refills, settings.concurrency, settings.seed
    )
    rollouts = Rollouts(sampler, tokenizer, settings.passes, agent_options or {})
    trainer = PFPOTrainer(
        advantage_rule=None if settings.rule in BY_TRL else by_rule(settings.rule),
        model=model,
        args=config(settings, folder),
        train_dataset=rollouts.dataset(settings.steps, settings.groups),
        processing_class=tokenizer,
        peft_config=lora and lora_config(lora),
        rollout_func=rollouts,
    )
    try:
        run(trainer, folder, on_step, rollouts.describe)
    finally:
        rollouts.close()
    if trainer.is_world_process_zero():
        save_policy(trainer.accelerator.unwrap_model(trainer.model), tokenizer, out)
    numbers = _numbers(folder.records())
    folder.finish(numbers)
    return numbers


def _numbers(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = steps[-max(1, len(steps) // 5) :]
    axes = {axis: [step["vector"][axis] for step in last if step["vector"][axis] is not None] for axis in AXES}
    return {
        "steps": len(steps),
        **{name: sum(step[name] for step in steps) for name in ("rollouts", "tokens", "unscored", "refilled")},
        "signal": statistics.fmean(step["signal"] for step in steps),
        "vector": {axis: statistics.fmean(values) if values else None for axis, values in axes.items()},
        **{name: statistics.fmean(step[name] for step in last) for name in ("kl", "loss")},
        "seconds": round(sum(step["seconds"] for step in steps), 3),
        "seconds_sampling": round(sum(step["seconds_sampling"] for step in steps), 3),
    }
