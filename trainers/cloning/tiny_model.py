"""The tiny policy's network: a Qwen 3 made from scratch, about a million parameters."""

from __future__ import annotations

from typing import Any

from fate_gym.trainers.cloning.settings import CloningSettings

_HEADS, _KEY_VALUE_HEADS = 4, 2


def make_model(tokenizer: Any, settings: CloningSettings) -> Any:
    """Returns a `Qwen3ForCausalLM` with random weights, float32, drawn from the settings' seed."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    # Forked, so that the weights depend on the seed alone and the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=settings.hidden_size,
                intermediate_size=3 * settings.hidden_size,
                num_hidden_layers=settings.layers,
                num_attention_heads=_HEADS,
                num_key_value_heads=_KEY_VALUE_HEADS,
                head_dim=settings.hidden_size // _HEADS,
                max_position_embeddings=settings.context,
                tie_word_embeddings=True,
                attn_implementation="sdpa",
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
