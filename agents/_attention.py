"""Attention on a CPU, for queries of which several share a key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

_NAME: Final = "fate_gym"


@contextlib.contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Lets a model's attention read each key once for all query heads that share it.

    transformers copies keys and values for each of these heads where a pass reads several tokens after a cache: for
    prompts of 2,000 tokens that is most of the time that a CPU takes. Only a model whose attention is "sdpa" changes.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa" and model.device.type == "cpu":
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attends as transformers' own function does.

    Args:
        module: The layer's attention.
        query: (n, heads, q, size).
        key: (n, key heads, w, size).
        value: (n, key heads, w, size).
        attention_mask: True where a query sees a key, (n, 1, q, w); None where each sees all up to its own.
        **options: `scaling`, and what transformers hands on.

    Returns:
        (n, q, heads, size), and no weights.
    """
    n, heads, q, size = query.shape
    shared = heads // key.shape[1]
    if attention_mask is None or shared == 1:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    # The queries of the heads that share a key become further places of one head.
    made = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(n, key.shape[1], shared * q, size),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, shared, 1),
        scale=options.get("scaling"),
    )
    return made.reshape(n, heads, q, value.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
