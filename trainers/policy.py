"""The policy as weights: loaded to learn, with LoRA or in full, and saved so that `--agent hf:DIR` plays it."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fate_gym.agents.chat_format import one_line
from fate_gym.agents.local import load_model, load_tokenizer
from fate_gym.chat import Json
from fate_gym.errors import UsageError
from fate_gym.storage import native_disk_errors
from fate_gym.trainers.processes import process_count

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
        last_layers: Adapters on so many of the last layers alone; None for all. Fewer are faster to train: gradients
            need not reach the layers below.
        dtype: Type of the frozen weights; None for bfloat16 on a GPU and float32 on a CPU. Some CPUs compute in
            bfloat16, and then faster.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    last_layers: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("rank and alpha must be positive, dropout in [0, 1)")
        if self.last_layers is not None and self.last_layers < 1:
            raise ValueError(f"last_layers must be at least 1, or null for all, got {self.last_layers}")

    def to_json(self) -> dict[str, Json]:
        """Returns the settings that are given: what was trained before others existed is still the same."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def load_policy(
    path: str | Path, *, lora: LoraSettings | None, attention: str | None = None, chat_template: str | None = None
) -> tuple[Model, Tokenizer]:
    """Loads a model and its tokenizer for learning, from safetensors alone and without any code of theirs.

    Weights that learn are float32, since small updates vanish in bfloat16; on a GPU their arithmetic alone is bfloat16
    (autocast). Frozen weights under adapters have the type that `lora` says.

    Args:
        path: A folder, or an id on the hub.
        lora: Adapters that will learn in place of the weights; None if the weights themselves will.
        attention: transformers' `attn_implementation`.
        chat_template: As in `LocalAgent`; the tokenizer keeps it, wherever it is saved.

    Raises:
        UsageError: It cannot be loaded, or is no chat model that takes tools.
    """
    try:
        import torch

        gpu = torch.cuda.is_available()
        dtype = "float32" if lora is None else lora.dtype or ("bfloat16" if gpu else "float32")
        tokenizer = load_tokenizer(str(path), chat_template=chat_template)
        model = load_model(str(path), dtype=dtype, attn_implementation=attention)
        # Among several processes the trainer places it: whole weights may fit no device.
        here = gpu and process_count() == 1
        return (model.to(f"cuda:{torch.cuda.current_device()}") if here else model), tokenizer
    except ModuleNotFoundError as error:
        raise UsageError(f"training needs {error.name}: pip install 'fate-gym[train]'") from error
    except Exception as error:
        # Loaders raise a different error for every kind of broken folder; the cause is always what the user named.
        raise UsageError(f"policy {path}: {one_line(error)}") from error


def lora_config(settings: LoraSettings, model: Model) -> Any:
    """Returns the settings as a `peft.LoraConfig` for a model."""
    from peft import LoraConfig

    layers = model.config.get_text_config().num_hidden_layers
    without = "|".join(map(str, range(layers - (settings.last_layers or layers))))
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        # The first number in a module's name is that of its layer.
        exclude_modules=rf"\D*\.(?:{without})\..*" if without else None,
        task_type="CAUSAL_LM",
    )


def with_adapters(model: Model, settings: LoraSettings, seed: int) -> Model:
    """Freezes a model and adds adapters to it, whose random initial weights the seed decides."""
    import peft
    import transformers

    transformers.set_seed(seed)
    with quiet():
        return peft.get_peft_model(model, lora_config(settings, model))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of transformers about old names that TRL and PEFT still use."""
    with warnings.catch_warnings():
        old = "(is_)?gradient_checkpointing(_enable|_disable)?"
        warnings.filterwarnings("ignore", f"`{old}` is deprecated", FutureWarning)
        yield


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
