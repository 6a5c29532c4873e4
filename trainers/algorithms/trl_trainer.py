"""`PFPOTrainer`, TRL's GRPO with other advantages. Importing this module takes seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from fate_gym.agents.kv_cache import can_share
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES
from fate_gym.trainers.algorithms._transformers import make_arguments
from fate_gym.trainers.algorithms.advantages import RULES, advantages
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.algorithms.shared_prefixes import SharedPrefixes, alphabetical
from fate_gym.trainers.algorithms.update_folder import UpdateFolder
from fate_gym.trainers.policy import Model, quiet
from fate_gym.trainers.processes import process_count

if TYPE_CHECKING:
    from torch import Tensor

AdvantageRule: TypeAlias = "Callable[[Tensor, int], Tensor]"
"""(Reward vectors, float32 (n, 4), NaN where an axis is not active or the row is not scored; group size) -> (n,)."""


class PFPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO with advantages that are computed from whole reward vectors (FATE, section 4.4).

    TRL owns the batches, the loss, the KL and the gathering of rewards over processes. This class keeps the matrix of
    rewards that TRL gathers, replaces TRL's advantages, and spares TRL's log-probabilities the work on padding. Every
    rollout has a field `vector` with a value per axis, None where the axis is not active. Each axis is one of TRL's
    reward functions, so that TRL's own formulas see the same numbers and serve as baselines.

    Args:
        advantage_rule: Computes the advantages; None to keep TRL's.
        corrects: Whether the loss corrects for samples that are not exactly the trainer's own, as TRL does for those of
            vLLM: each sequence's loss is multiplied by w = prod_t pi_t / mu_t, the ratio of the trainer's probabilities
            before the update to those that the sampler reported, or by 0 where w > 3 (`vllm_importance_sampling_mode`
            "sequence_mask"; GRPOTrainer._generate_and_score_completions of trl 1.16). So mu is the policy that really
            sampled, be it one step older, while rho and its clipping keep to the policy before the update: the
            decoupled objective of Hilton et al., 2021.
        **settings: Arguments of `GRPOTrainer`; the reward functions are set here.
    """

    _buffered_inputs: list[dict[str, Any]] | None  # TRL's micro-batches of the present batch of rollouts.

    def __init__(self, *, advantage_rule: AdvantageRule | None, corrects: bool = False, **settings: Any) -> None:
        with quiet():
            # TRL warns that the interface of `rollout_func` may change. Contract tests of ours pin what we use of it.
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(reward_funcs=[_axis_reward(index) for index in range(len(AXES))], **settings)
        self._rule = advantage_rule
        # TRL corrects where it believes that vLLM sampled. It must have no vLLM of its own, hence not in its settings.
        self.use_vllm = corrects
        self._matrix: Tensor | None = None
        # Only this attention takes a mask of ours, and a loss on routers would count a shared token once.
        attention = self.model.config._attn_implementation
        self._shares = attention == "sdpa" and can_share(self.model) and not self.aux_loss_enabled

    def _send_telemetry(self) -> None:
        """Sends nothing: TRL would report every training to its makers."""

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._matrix = super()._calculate_rewards(*args, **kwargs)
        return self._matrix

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        # Nor may it send weights to one: `Sampler.learner` has seen to that.
        self._last_loaded_step = self.state.global_step
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            # TRL logs the mean, the least and the largest ratio, in which those that it has cut are zeros, untold.
            cut = (batch["importance_sampling_ratio"] == 0).float().mean()
            self._metrics["train"]["sampling/importance_sampling_ratio/cut"].append(
                self.accelerator.gather(cut).mean().item()
            )
        if self._rule is None:
            return batch
        own, group_size, processes = batch["advantages"], self.num_generations, self.accelerator.num_processes
        matrix = self._matrix
        if matrix is None or matrix.shape != (own.shape[0] * processes, len(AXES)) or len(matrix) % group_size:
            shape = None if matrix is None else tuple(matrix.shape)
            raise FateGymError(
                f"TRL no longer keeps rewards as PFPO reads them: {shape} for {own.shape[0]} rows on each of "
                f"{processes} processes; install trl 1.16"
            )
        # Rewards are gathered over processes, so that whole groups are seen; each process learns from its own rows.
        first = self.accelerator.process_index * own.shape[0]
        batch["advantages"] = self._rule(matrix, group_size)[first : first + own.shape[0]].to(own)
        return batch

    def _get_per_token_logps_and_entropies(
        self,
        model: Model,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Spares the work on padding and on beginnings that rows share (see `SharedPrefixes`).

        TRL pads prompts on the left, and all rows to the longest of the whole batch.
        """
        order = alphabetical(input_ids, attention_mask)
        logps, entropies, aux_losses = [], [], []
        for rows in order.split(batch_size or len(order)):
            shared = SharedPrefixes.of(input_ids[rows], attention_mask[rows], logits_to_keep, share=self._shares)
            with self.accelerator.autocast():
                # TRL's own head: it knows temperature and scaling of logits, and holds no logits of a whole batch.
                output = model(
                    input_ids=shared.ids,
                    position_ids=shared.positions,
                    attention_mask=shared.attends,
                    shift_labels=shared.labels,
                    fused_lm_head=True,
                    **({"output_router_logits": True} if compute_aux_loss else {}),
                )
            logps.append(shared.unpack(output.log_probs))
            entropies += [shared.unpack(output.entropy)] if compute_entropy else []
            aux_losses += [output.aux_loss] if compute_aux_loss else []
        back = order.argsort()
        return (
            torch.cat(logps)[back],
            torch.cat(entropies)[back] if entropies else None,
            torch.stack(aux_losses).mean() if aux_losses else None,
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Puts rows that begin alike into the same micro-batch; TRL shuffles them.

        All micro-batches of a batch of rollouts add up to one update, in which every row counts alike.
        """
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if batches is None or batches is before:
            return inputs
        whole = {
            name: torch.cat([batch[name] for batch in batches]) if _has_rows(value) else value
            for name, value in batches[0].items()
        }
        ids, mask = (
            torch.cat([whole[f"prompt_{kind}"], whole[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask")
        )
        order = alphabetical(ids, mask)
        ordered = {name: value[order] if _has_rows(value) else value for name, value in whole.items()}
        batches[:] = split_tensor_dict(ordered, len(batches))
        chosen: dict[str, Any] = batches[self._step % len(batches)]
        return chosen


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _axis_reward(index: int) -> Callable[..., list[float | None]]:
    """Makes a reward function for TRL that reads one axis. It bears the axis's name, by which TRL logs it."""

    def reward(vector: list[list[float | None]], **_: Any) -> list[float | None]:
        return [axes[index] for axes in vector]

    reward.__name__ = AXES[index]
    return reward


def by_rule(name: str) -> AdvantageRule:
    """Returns a rule of `advantages.RULES` in the form that `PFPOTrainer` takes."""

    def rule(matrix: Tensor, group_size: int) -> Tensor:
        # Advantages are computed in double precision on the CPU: groups are small, and near-ties matter.
        vectors = matrix.double().cpu().numpy()
        return torch.from_numpy(advantages(name, vectors, ~np.isnan(vectors), group_size))

    return rule


def trl_config(settings: PFPOSettings, folder: UpdateFolder) -> GRPOConfig:
    """Translates our settings into TRL's.

    Truncated episodes are not masked (TRL's `mask_truncated_completions`): their validity is 0, which is a signal.

    Raises:
        ValueError: Groups do not divide among processes.
    """
    processes = process_count()
    if settings.groups % processes:
        raise ValueError(f"groups={settings.groups} do not divide among {processes} processes")
    rows = settings.groups * settings.group_size // processes
    # The largest divisor, since TRL takes no smaller last micro-batch.
    micro_batch = max(size for size in range(1, settings.micro_batch + 1) if rows % size == 0)
    return make_arguments(
        GRPOConfig,
        folder,
        report_to=settings.report_to,
        max_steps=settings.steps * settings.passes,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        num_generations=settings.group_size,
        num_iterations=settings.passes,
        # `schedule` has shuffled the tasks already, in a way that does not depend on TRL's version.
        shuffle_dataset=False,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        beta=settings.beta,
        epsilon=settings.clip,
        # Each trajectory counts once, whatever its length: the mean over its own tokens, as in the formula of `pfpo`.
        loss_type="grpo",
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        # Never between two passes over a batch: TRL would sample another batch when it resumes.
        save_steps=settings.save_every * settings.passes,
        seed=settings.seed,
        **(RULES[settings.rule].trl or {}),
    )
