"""PFPO: policy optimisation on groups of rollouts, with advantages that are computed from whole reward vectors.

    L = -1/G sum_i 1/|a_i| sum_t m_it min(rho_it A_i, clip(rho_it, 1 - e, 1 + e) A_i) + beta KL(pi || pi_ref)

(FATE, section 4.4 f), where rho is the ratio to the policy before the step. The advantages A follow a rule of
`advantages.RULES`, and the reference pi_ref is the policy that the whole update starts from. Weighted-sum GRPO, GDPO
and security-only GRPO run here too, with TRL's own advantages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fate_gym.evaluation.plan import Item, Plan
from fate_gym.rewards import AXES
from fate_gym.storage import Fields
from fate_gym.trainers.algorithms.advantages import RULES
from fate_gym.trainers.algorithms.groups import GroupSampler
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.algorithms.update_folder import Numbers, OnStep, UpdateFolder
from fate_gym.trainers.policy import LoraSettings, Options, load_policy, lora_config
from fate_gym.trainers.sampling import LocalSampler, Sampler

_COUNTS: Final = ("rollouts", "tokens", "learned", "unscored", "refilled")


def optimise_policy(
    policy: str,
    plan: Plan,
    items: Sequence[Item],
    settings: PFPOSettings,
    out: Path,
    *,
    lora: LoraSettings | None,
    sampler: Sampler | None = None,
    agent_options: Options | None = None,
    attention: str | None = None,
    on_step: OnStep | None = None,
) -> Numbers:
    """Optimises a policy on its own rollouts and saves it (see `save_policy`).

    An interrupted call is resumed by the same call. It runs an event loop of its own to sample: do not call it from
    within another one.

    Args:
        policy: Weights to start from; they are also the reference of the KL.
        plan: Makes the environments.
        items: The tasks to sample groups of.
        settings: Hyperparameters of the update.
        out: The update's folder.
        lora: Adapters, or None to learn all weights.
        sampler: Who samples; None for this process.
        agent_options: Options of `LocalAgent`, such as `max_new_tokens` and `max_batch`.
        attention: transformers' `attn_implementation`.
        on_step: Called after each step.

    Returns:
        `steps`; `rollouts` and `tokens` that were sampled, those of replaced groups included; `learned`, the tokens of
        the sequences that the updates read, over all passes; `unscored` rollouts; `refilled` groups; `signal`, the mean
        share of groups with a signal; `vector` (the mean of each axis), `kl` and `loss`, means over the last fifth of
        the steps; `seconds`, and `seconds_sampling` of them, in which nothing but rollouts was waited for.

    Raises:
        ValueError: There is no task, groups do not divide among processes, or `agent_options` change the distribution.
        UsageError: The policy cannot be loaded.
        RunMismatchError: The folder holds an update with other settings or tasks.
        FateGymError: The loss or the gradient is not finite, or no rollout of a step could be scored.
    """
    if not items:
        raise ValueError("there is nothing to optimise on: no tasks")
    # The loss divides logits by the temperature of the settings. With another distribution in sampling, the ratio of
    # new to old probabilities would be wrong from the first step on.
    if given := {"temperature", "top_p", "seed"} & set(agent_options or {}):
        raise ValueError(f"agent_options hold {min(given)}: PFPO samples with the temperature and seed of its settings")
    # A digest, since thousands of keys would fill the file of settings.
    keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
    data = {"stage": "pfpo", "items": keys, "lora": lora and lora.to_json()}
    given_settings = dataclasses.asdict(settings)
    if settings.tokens is None:
        # An update that was made before this setting existed is still the same one.
        del given_settings["tokens"]
    folder = UpdateFolder(out, {**data, **given_settings, "agent": dict(agent_options or {})})
    if folder.finished is not None:
        return folder.finished
    chat_template = (agent_options or {}).get("chat_template")
    model, tokenizer = load_policy(policy, lora=lora, attention=attention, chat_template=chat_template)

    from fate_gym.trainers.algorithms._transformers import save_trained, train_to_end
    from fate_gym.trainers.algorithms.rollouts import Rollouts
    from fate_gym.trainers.algorithms.trl_trainer import PFPOTrainer, by_rule, trl_config

    groups = GroupSampler(
        plan, items, settings.rule, settings.group_size, settings.refills, settings.concurrency, settings.seed
    )
    sampler = sampler or LocalSampler(agent_options or {})
    rollouts = Rollouts(groups, sampler, policy, tokenizer, settings, _TokenLimit(settings.tokens, folder))
    trainer = PFPOTrainer(
        advantage_rule=by_rule(settings.rule) if RULES[settings.rule].trl is None else None,
        corrects=not sampler.is_exact,
        model=model,
        args=trl_config(settings, folder),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        peft_config=lora and lora_config(lora, model),
        rollout_func=rollouts,
    )
    with contextlib.closing(rollouts):
        train_to_end(trainer, folder, on_step, rollouts.describe, rollouts.is_last)
    save_trained(trainer, policy, tokenizer, out)
    numbers = _numbers(folder.steps())
    folder.finish(numbers)
    return numbers


class _TokenLimit:
    """Tells of each step of an update whether it is the last one that the tokens suffice for.

    Args:
        tokens: Policy tokens to sample; None for no limit.
        folder: The update's folder; its steps up to the checkpoint have been paid for.
    """

    def __init__(self, tokens: int | None, folder: UpdateFolder) -> None:
        self._limit = tokens
        kept = [step for step in folder.steps() if step.integer("step") <= folder.step]
        # The further passes of a step sampled nothing.
        self._spent = [step.integer("tokens") for step in kept if step.integer("rollouts")]

    def __call__(self, tokens: int) -> bool:
        self._spent.append(tokens)
        # One more step would end further beyond the limit than this one ends before it.
        return self._limit is not None and sum(self._spent) + statistics.fmean(self._spent) / 2 > self._limit


def _numbers(steps: Sequence[Fields]) -> Numbers:
    # Means over the end: those over all steps would mostly describe the policy before it had learned.
    last = steps[-max(1, len(steps) // 5) :]
    vectors = [step.object("vector") for step in last]
    axes = {axis: [vector.number(axis) for vector in vectors if vector.values.get(axis) is not None] for axis in AXES}
    return {
        "steps": len(steps),
        **{name: sum(step.integer(name) for step in steps) for name in _COUNTS},
        "signal": statistics.fmean(step.number("signal") for step in steps),
        "vector": {axis: statistics.fmean(values) if values else None for axis, values in axes.items()},
        **{name: statistics.fmean(step.number(name) for step in last) for name in ("kl", "loss")},
        "seconds": round(sum(step.number("seconds") for step in steps), 3),
        "seconds_sampling": round(sum(step.number("seconds_sampling") for step in steps), 3),
    }
