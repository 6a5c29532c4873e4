"""Adapters of a policy over the weights that a training began with.

Each update of a training merges its adapter into the weights and saves it beside them, so that the next one starts from
whole weights. A server that loaded the first weights needs no others: low-rank updates add up to one,

    B_1 A_1 + B_2 A_2 = [B_1 B_2] [A_1; A_2]

whose rank is the sum of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fate_gym.errors import UsageError
from fate_gym.storage import make_folder
from fate_gym.trainers.policy import ADAPTER, Model

if TYPE_CHECKING:
    from torch import Tensor


CONFIG: Final = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank update of some layers.

    Attributes:
        tensors: A and B of each layer under PEFT's names of them, (rank, inputs) and (outputs, rank).
        config: PEFT's `adapter_config.json`.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return float(self.config["lora_alpha"]) / int(self.config["r"])


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter that `save_policy` wrote."""
    from safetensors.torch import load_file

    return Adapter(load_file(folder / "adapter_model.safetensors"), json.loads((folder / CONFIG).read_bytes()))


def adapter_of(model: Model, state: Mapping[str, Tensor] | None = None) -> Adapter:
    """Returns a model's adapter as it is now.

    Args:
        model: A model of PEFT.
        state: Its state, where its own tensors are only shards of it.
    """
    from peft import get_peft_model_state_dict

    # "default" alone: TRL adds a frozen adapter "ref".
    tensors = get_peft_model_state_dict(model, state_dict=state, adapter_name="default")
    config = model.peft_config["default"]
    return Adapter(tensors, {"lora_alpha": config.lora_alpha, "r": config.r})


def adapters_since(base: str, policy: str) -> list[Adapter]:
    """Returns the adapters that lead from one policy to another, the first one first; none if they are the same.

    Raises:
        UsageError: No adapters lead there: all weights were learned, or folders have been moved.
    """
    found: list[Adapter] = []
    while _place(policy) != _place(base):
        folder = Path(policy) / ADAPTER
        if not (folder / CONFIG).exists():
            raise UsageError(
                f"no adapters lead from {base} to {policy}: give `sampler.reload`, a command that loads whole weights"
            )
        found.insert(0, read_adapter(folder))
        policy = str(found[0].config["base_model_name_or_path"])
    return found


def _place(policy: str) -> str:
    """A folder wherever it is named from, or an id of the hub."""
    return str(Path(policy).resolve()) if Path(policy).is_dir() else policy


def save_sum(adapters: Sequence[Adapter], base: str, out: Path) -> None:
    """Saves the sum of adapters as one, which PEFT and vLLM load.

    Args:
        adapters: At least one.
        base: The weights that they add to.
        out: The folder.
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = sum(int(adapter.config["r"]) for adapter in adapters)
    layers = {name.rpartition(".lora_")[0] for adapter in adapters for name in adapter.tensors}
    tensors: dict[str, Tensor] = {}
    for layer in sorted(layers):
        names = [f"{layer}.lora_{part}.weight" for part in "AB"]
        pairs = [([one.tensors[name] for name in names], one.scale) for one in adapters if names[0] in one.tensors]
        down = torch.cat([pair[0].float() for pair, _ in pairs])
        up = torch.cat([pair[1].float() * scale for pair, scale in pairs], dim=1)
        # An update that left a layer out adds nothing to it.
        missing = rank - len(down)
        tensors[names[0]] = torch.nn.functional.pad(down, (0, 0, 0, missing)).contiguous().cpu()
        tensors[names[1]] = torch.nn.functional.pad(up, (0, missing)).contiguous().cpu()
    make_folder(out)
    modules = sorted({layer.rpartition(".")[2] for layer in layers})
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=modules, base_model_name_or_path=base, task_type="CAUSAL_LM"
    )
    config.save_pretrained(out)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
