"""Updates of all weights, then of adapters by PFPO, for tests that start them in processes: POLICY OUT [LAST STEP].

accelerate shards on accelerators alone. Here it is made to do so on a CPU too; all else is what `accelerate launch`
with the shipped configuration does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import shop_plugin  # noqa: F401 (registers the toy benchmark)
import shop_policy
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType

from fate_gym.trainers import processes
from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.sequences import Example
from fate_gym.trainers.algorithms.settings import PFPOSettings, SupervisedSettings
from fate_gym.trainers.algorithms.supervised import learn_examples
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.sampling import LocalSampler

LORA = LoraSettings(rank=4, alpha=8)
# Three examples in batches of two and one, so that in one step a process of two has nothing of its own to learn.
WARMUP = SupervisedSettings(learning_rate=0.02, warmup=0.0, batch_tokens=10, save_every=1)
PFPO = PFPOSettings(steps=2, groups=4, group_size=2, refills=2, learning_rate=1e-2, micro_batch=2, save_every=1)
OPTIONS = {"max_new_tokens": 8}


def shard_on_a_cpu() -> None:
    """Has accelerate take the launcher's settings in processes on a CPU as it does on GPUs."""
    if processes.sharding().startswith("DeepSpeed"):
        _deepspeed_on_a_cpu()
    elif processes.sharding():
        _fsdp_on_a_cpu()


def _deepspeed_on_a_cpu() -> None:
    import deepspeed

    # A compiler builds it at first use; it is for inference alone, and says on stdout that it was built.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # As accelerate does on GPUs. DeepSpeed believes of processes that others have connected that each is alone.
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    init = DeepSpeedPlugin.__post_init__

    def with_limits(self: Any) -> None:
        init(self)
        # Tensors as small as these would be left whole, and so few stay gathered until the end of a step.
        limits = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        self.deepspeed_config["zero_optimization"] |= {f"stage3_{limit}": 0 for limit in limits}

    DeepSpeedPlugin.__post_init__ = with_limits


def _fsdp_on_a_cpu() -> None:
    init = AcceleratorState.__init__

    def sharding(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharding


class Noting(LocalSampler):
    """Notes how many weights this process holds, and how many in sampling."""

    def __init__(self, out: Path) -> None:
        super().__init__(OPTIONS)
        self._out = out

    def learner(self, trainer: Any, policy: str, **options: Any) -> Any:
        sizes = [_held_and_whole(weights) for weights in trainer.model.parameters()]
        rank = os.environ.get("RANK", "0")
        (self._out / f"held-{rank}.json").write_text(json.dumps([sum(size) for size in zip(*sizes, strict=True)]))
        return super().learner(trainer, policy, **options)


def _held_and_whole(weights: Any) -> tuple[int, int]:
    """The numbers that a tensor has in this process, and in all."""
    if hasattr(weights, "to_local"):
        return weights.to_local().numel(), weights.numel()
    if hasattr(weights, "ds_tensor"):
        return max(weights.numel(), weights.ds_tensor.numel()), weights.ds_numel
    return weights.numel(), weights.numel()


def examples(policy: Path) -> list[Example]:
    """Three sequences of five tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    made = []
    for ship in (shop_policy.RIGHT, shop_policy.WRONG, shop_policy.RIGHT):
        ids = tokenizer.convert_tokens_to_ids(["\n", "<tool_call>", ship, "</tool_call>", "<|im_end|>"])
        made.append(Example(ids[:1], ids[1:], [1, 1, 0, 1]))
    return made


if __name__ == "__main__":
    policy, out, *dies = sys.argv[1:]
    torch.set_num_threads(1)
    shard_on_a_cpu()
    Path(out).mkdir(exist_ok=True)
    learn_examples(policy, examples(Path(policy)), WARMUP, Path(out, "warmup"), lora=None)

    def die(step: dict[str, Any]) -> None:
        if dies and step["step"] == int(dies[0]):
            os._exit(9)

    plan = shop_policy.shop()
    optimise_policy(
        str(Path(out, "warmup")),
        plan,
        plan.items,
        PFPO,
        Path(out, "pfpo"),
        lora=LORA,
        sampler=Noting(Path(out)),
        agent_options=OPTIONS,
        on_step=die,
    )
