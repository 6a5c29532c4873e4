"""The policy as weights: loaded to learn, with LoRA or in full, and saved so that `--agent hf:DIR` plays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fate_gym.agents.chat_format import one_line
from fate_gym.agents.local import load_model, load_tokenizer
from fate_gym.errors import UsageError
from fate_gym.storage import native_disk_errors

Model: TypeAlias = Any
"""A causal language model of transformers, perhaps with adapters of PEFT. These libraries have no types."""

Tokenizer: TypeAlias = Any
"""A tokenizer of transformers."""

Options: TypeAlias = Mapping[str, Any]
"""Options of a `LocalAgent`, such as `max_new_tokens`."""

ADAPTER = "adapter"
"""Where `save_policy` puts an adapter, beside the merged weights."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters on every linear layer but the output (Hu et al., 2021).

    Attributes:
        rank: Rank of the update of a layer.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout rate of the adapters' inputs during training.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("rank and alpha must be positive, dropout in [0, 1)")


def load_policy(path: str | Path, *, lora: bool, attention: str | None = None) -> tuple[Model, Tokenizer]:
    """Loads a model and its tokenizer for learning, from safetensors alone and without any code of theirs.

    On a CPU the weights are float32. On a GPU the frozen weights under adapters are bfloat16; weights that learn
    themselves stay float32, since small updates vanish in bfloat16, and only the arithmetic is bfloat16 (autocast).

    Args:
        path: A folder, or an id on the hub.
        lora: Whether adapters will learn in place of the weights.
        attention: transformers' `attn_implementation`.

    Raises:
        UsageError: It cannot be loaded, or is no chat model that takes tools.
    """
    try:
        import torch

        gpu = torch.cuda.is_available()
        dtype = "bfloat16" if gpu and lora else "float32"
        tokenizer = load_tokenizer(str(path))
        model = load_model(str(path), dtype=dtype, attn_implementation=attention)
        return (model.to(f"cuda:{torch.cuda.current_device()}") if gpu else model), tokenizer
    except ModuleNotFoundError as error:
        raise UsageError(f"training needs {error.name}: pip install 'fate-gym[train]'") from error
    except Exception as error:
        # Loaders raise a different error for every kind of broken folder; the cause is always what the user named.
        raise UsageError(f"policy {path}: {one_line(error)}") from error


def lora_config(settings: LoraSettings) -> Any:
    """Returns the settings as a `peft.LoraConfig`."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def save_policy(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Saves a policy: whole weights in `out`, and adapters apart in `out/adapter` where there are any.

    `--agent hf:OUT` plays the first, `--agent hf:BASE --adapter OUT/adapter` the second, to the same numbers (up to
    rounding in the merge).

    Args:
        model: The trained model. Its adapters are merged into its weights, so it cannot be trained any further.
        tokenizer: The policy's tokenizer.
        out: The folder.

    Raises:
        DiskError, OSError: The file system refused.
    """
    from peft import PeftModel

    with native_disk_errors(out):
        if isinstance(model, PeftModel):
            # "default" alone: TRL adds a frozen adapter "ref", which is no part of the policy.
            model.save_pretrained(out / ADAPTER, selected_adapters=["default"])
            model = model.merge_and_unload(adapter_names=["default"])
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
