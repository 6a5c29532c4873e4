"""Attention over rows without padding, some of which begin alike, on a CPU.

A pass reads the new tokens of all rows as one text, so that nothing but attention knows of rows. What rows begin with
in common is attended to once for all of them: its keys are read once, not once a row, and the two parts of a row's
attention are put together by the logarithms of their sums of exponentials (as in Hydragen, Juravsky et al., 2024).
Heads of queries that share keys are further queries of one head, so that no key is copied for each of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

from fate_gym.agents.kv_cache import KeysAndValues, can_share

_NAME: Final = "fate_gym_packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Whose the tokens of a pass are.

    Attributes:
        rows: The number of rows, n.
        longest: Most new tokens of a row, q.
        places: Where each token stands among the rows padded to `longest`, (t,), in [0, n q); None where no row is
            padded.
        visible: True where a token sees one of its row's own keys, (n, q, w); None where each sees those up to its own.
        beginnings: Rows, and what they begin with before the first of their own keys; all its tokens are visible.
    """

    rows: int
    longest: int
    places: Tensor | None
    visible: Tensor | None
    beginnings: Sequence[tuple[Tensor, KeysAndValues]]
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, shared: int, dtype: torch.dtype) -> Tensor | None:
        """Returns what is added to scores, (n, 1, shared x q, w), the same for the heads that share keys."""
        if self.visible is not None and shared not in self._masks:
            hidden = torch.zeros(self.visible.shape, dtype=dtype).masked_fill_(~self.visible, float("-inf"))
            self._masks[shared] = hidden[:, None].repeat(1, 1, shared, 1)
        return self._masks.get(shared)


def can_pack(model: Any) -> bool:
    """Whether `packed_attention` can serve a model: on a CPU, with attention and keys of the usual kind."""
    config = model.config.get_text_config()
    usual = config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False)
    # Where keys are larger than values (MLA), the operator below refuses.
    return bool(model.device.type == "cpu" and usual and not hasattr(config, "v_head_dim") and can_share(model))


@contextlib.contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Has a model attend by the `Layout` that it is called with, as `layout`."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _: None, *, layout: Layout, **options: Any
) -> tuple[Tensor, None]:
    """Attends as transformers' functions do.

    Args:
        module: The layer's attention.
        query: (1, heads, t, size).
        key: The rows' own keys, (n, key heads, w, size).
        value: Their own values, (n, key heads, w, size).
        layout: Whose the tokens are.
        **options: `scaling`, and what transformers hands on.

    Returns:
        (1, t, heads, size), and no weights.
    """
    heads, size = query.shape[1], query.shape[3]
    n, q, key_heads = layout.rows, layout.longest, key.shape[1]
    scale, shared = options.get("scaling"), heads // key_heads
    tokens = query[0].transpose(0, 1)
    if layout.places is not None:
        tokens = query.new_zeros(n * q, heads, size).index_copy_(0, layout.places, tokens)
    queries = tokens.reshape(n, q, heads, size).transpose(1, 2)
    grouped = queries.reshape(n, key_heads, shared * q, size)
    mask = layout.mask(shared, query.dtype)
    if mask is None:
        each = [states.repeat_interleave(shared, 1) for states in (key, value)]
        made, weight = _flash(queries, *each, is_causal=True, scale=scale)
        made, weight = made.reshape(grouped.shape), weight.reshape(grouped.shape[:3])
    else:
        made, weight = _flash(grouped, key, value, attn_mask=mask, scale=scale)
    for rows, beginning in layout.beginnings:
        asked = grouped[rows].transpose(0, 1).reshape(1, key_heads, -1, size)
        held = (states[module.layer_idx, None] for states in (beginning.keys, beginning.values))
        seen, above = _flash(asked, *held, scale=scale)
        seen = seen.reshape(key_heads, len(rows), -1, size).transpose(0, 1)
        above = above.reshape(key_heads, len(rows), -1).transpose(0, 1)
        share = (above - weight[rows]).sigmoid()[..., None]
        made[rows] = made[rows].float().lerp(seen.float(), share).to(made.dtype)
    output = made.reshape(n, heads, q, size).transpose(1, 2).reshape(n * q, heads, size)
    return (output if layout.places is None else output[layout.places])[None], None


def _flash(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's sum of exponentials; the public function does not return that."""
    made: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, **options
    )
    return made


AttentionInterface.register(_NAME, _attend)
