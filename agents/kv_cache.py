"""Keys and values of tokens that a model has read, so that it reads no prompt twice.

`PrefixStore` keeps them between requests: a conversation goes on from its last turn, and all episodes of a suite share
the system text and the tools that they begin with. `batch_cache` makes the cache of requests that run together.

transformers has both ideas, but neither serves here. Its continuous batching shares prefixes, but samples from one
stream of random numbers, so that a request's sample would depend on who shares its batch. Its dynamic cache
concatenates, which copies every key and value at every token.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

if TYPE_CHECKING:
    from torch import Tensor

BLOCK: Final = 16
"""Tokens of a block. A smaller one would share a little more, and cost more bookkeeping."""

# transformers 5.24 renamed `past_key_values` to `cache`, in a model's output as in its arguments.
CACHE_ARGUMENT: Final = next(
    field.name for field in dataclasses.fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values")
)


@dataclass(frozen=True, slots=True)
class KeysAndValues:
    """Those of consecutive tokens in all layers.

    Attributes:
        keys: (layers, heads, tokens, size of a head).
        values: (layers, heads, tokens, size of a value).
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self.keys.size(2))

    @property
    def bytes(self) -> int:
        """Memory."""
        total: int = self.keys.nbytes + self.values.nbytes
        return total

    def part(self, start: int, end: int) -> KeysAndValues:
        """Returns a copy of some tokens', which keeps no more memory than it needs."""
        return KeysAndValues(self.keys[:, :, start:end].clone(), self.values[:, :, start:end].clone())


@dataclass(slots=True)
class _Block:
    number: int
    held: KeysAndValues


class PrefixStore:
    """Keys and values of token sequences, in blocks. Sequences that begin alike share the blocks of their beginning.

    A block is known by its tokens and by the block before it: what a token's keys and values are depends on all tokens
    up to it, and on the weights (see `renew`).

    Args:
        capacity: Most bytes; the blocks that were not used for longest are dropped beyond it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()
        self._made = 0
        self._weights: object = None

    def renew(self, weights: object) -> None:
        """Forgets everything if the weights are other ones than at the last call.

        Args:
            weights: A value that differs whenever the weights do.
        """
        if weights != self._weights:
            self.clear()
            self._weights = weights

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self._bytes = 0

    def read(self, ids: Sequence[int]) -> list[KeysAndValues]:
        """Returns the blocks of the longest known beginning of a sequence, in order."""
        keys = []
        parent, start = 0, 0
        while block := self._blocks.get(key := (parent, tuple(ids[start : start + BLOCK]))):
            keys.append(key)
            parent, start = block.number, start + BLOCK
        # From the last to the first, so that a block is never dropped before those that go on from it.
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        return [self._blocks[key].held for key in keys]

    def write(self, ids: Sequence[int], made: KeysAndValues, start: int) -> None:
        """Keeps a sequence's whole blocks.

        Args:
            ids: The sequence, (n,).
            made: Keys and values of its tokens from `start` on; there may be fewer than tokens.
            start: Where `made` begins; a multiple of the block's size, before which everything was known.
        """
        parent = 0
        for begin in range(0, start + len(made) - BLOCK + 1, BLOCK):
            key = (parent, tuple(ids[begin : begin + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                if begin < start:
                    return  # Dropped since it was read: what goes on from it could never be found.
                self._made += 1
                block = _Block(self._made, made.part(begin - start, begin - start + BLOCK))
                self._blocks[key] = block
                self._bytes += block.held.bytes
            parent = block.number
        while self._bytes > self._capacity:
            _, dropped = self._blocks.popitem(last=False)
            self._bytes -= dropped.held.bytes


def joined(blocks: Sequence[KeysAndValues]) -> KeysAndValues:
    """Returns blocks, at least one, as one piece."""
    return KeysAndValues(
        torch.cat([block.keys for block in blocks], 2), torch.cat([block.values for block in blocks], 2)
    )


def batch_cache(pasts: Sequence[Sequence[KeysAndValues]], layers: int, room: int) -> Any:
    """Returns the cache of requests that run together, as transformers takes it.

    Args:
        pasts: The blocks that are known of each row, (n,); they are padded on the left to the longest row.
        layers: The model's layers.
        room: Tokens that memory is set aside for, beyond the known ones.
    """
    held = [joined(past) for past in pasts if past]
    made = [_Layer(room) for _ in range(layers)]
    if held:
        places = [row for row, past in enumerate(pasts) if past]
        width = max(map(len, held))
        for number, layer in enumerate(made):
            keys, values = ([getattr(past, name)[number] for past in held] for name in ("keys", "values"))
            layer.update(_left_padded(keys, places, len(pasts), width), _left_padded(values, places, len(pasts), width))
    return Cache(layers=made)


def row_of(cache: Any, row: int, columns: Tensor) -> KeysAndValues:
    """Returns a row's keys and values at some columns, (k,)."""
    return KeysAndValues(
        *(
            torch.stack([getattr(layer, name)[row].index_select(1, columns) for layer in cache.layers])
            for name in ("keys", "values")
        )
    )


def can_share(model: Any) -> bool:
    """Whether all that a model keeps of a token is a key and a value in each layer, on one device.

    It is not so with sliding windows, with states (Mamba, linear attention), and over several GPUs.
    """
    layers = DynamicCache(config=model.config.get_text_config()).layers
    one_device = len({weights.device for weights in model.parameters()}) == 1
    return one_device and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _left_padded(states: Sequence[Tensor], places: Sequence[int], rows: int, width: int) -> Tensor:
    """Puts (heads, tokens, size) of some rows into (rows, heads, width, size); 0, which the mask hides, elsewhere."""
    heads, _, size = states[0].shape
    padded = states[0].new_zeros(rows, heads, width, size)
    for place, held in zip(places, states, strict=True):
        padded[place, :, width - held.shape[1] :] = held
    return padded


class _Layer(DynamicLayer):  # type: ignore[misc]
    """A layer whose memory is set aside in large steps."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._memory: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens, (n, heads, tokens, size), and returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        added = (key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._memory or self._memory[0].shape[2] < end:
            size = end + max(self._room, end // 4)
            grown = [states.new_empty(*states.shape[:2], size, states.shape[3]) for states in added]
            for new, old in zip(grown, (self.keys, self.values) if start else (), strict=False):
                new[:, :, :start] = old
            self._memory = grown
        for held, states in zip(self._memory, added, strict=True):
            held[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        width = self.get_seq_length()
        self._memory = [held.index_select(0, indices) for held in self._memory]
        self._show(width)

    def _show(self, width: int) -> None:
        self.keys, self.values = (held[:, :, :width] for held in self._memory)
