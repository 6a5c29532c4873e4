"""Rows of a batch without padding, which come and go: on a CPU, padding costs as much as text."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from fate_gym.agents._attention import Layout, packed_attention
from fate_gym.agents.kv_cache import BLOCK, CACHE_ARGUMENT, KeysAndValues, joined

_READ_TOGETHER: Final = 4096
"""Most places of prompts that are read in one pass, padding counted: attention pads, and its scores take memory."""


@dataclass(eq=False, slots=True)
class _Beginning:
    """What rows begin with, kept once for all of them.

    Attributes:
        blocks: What it is made of.
        held: All of it, once a pass has needed it.
    """

    blocks: Sequence[KeysAndValues]
    held: KeysAndValues | None = None

    def joined(self) -> KeysAndValues:
        """Returns all of it in one piece."""
        self.held = self.held or joined(self.blocks)
        return self.held


@dataclass(slots=True)
class _Slot:
    """A row.

    Attributes:
        past: The blocks that were known of it when it came.
        beginning: Those of them that it has in common with other rows, or all.
        last: The token that is read next.
        length: Its own tokens that have been read, after the beginning.
    """

    past: Sequence[KeysAndValues]
    beginning: _Beginning
    last: int
    length: int = 0

    @property
    def start(self) -> int:
        """Tokens of its beginning."""
        return BLOCK * len(self.beginning.blocks)


class PackedBatch:
    """Rows that share their forward passes.

    A pass reads the new tokens of all rows as one text. Each row's keys and values stand in a place of its own, in
    order and without holes: what was a wrong guess is written over.

    Attributes:
        joins: Whether rows can be added to those under way.
        most_live: The share of rows, at most, at which those that have ended leave; all leave at once here, as it
            copies one row for each.
    """

    joins = True
    most_live = 1.0

    def __init__(self, model: Any) -> None:
        self._model = model
        self._slots: list[_Slot] = []
        self._layers = [_Layer() for _ in range(model.config.get_text_config().num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._guessed: list[int] = []

    def add(self, prompts: Sequence[Sequence[int]], pasts: Sequence[Sequence[KeysAndValues]]) -> None:
        """Adds rows, and reads what is not known of them but for their last token.

        Args:
            prompts: Token ids, (n,), with one token at least.
            pasts: The blocks that are known of each, (n,), without the last token.
        """
        first = len(self._slots)
        near = [*(slot.past for slot in self._slots), *pasts]
        for prompt, past in zip(prompts, pasts, strict=True):
            slot = _Slot(past, self._beginning(past, near), prompt[-1])
            self._slots.append(slot)
            if own := past[len(slot.beginning.blocks) :]:
                self._write(len(self._slots) - 1, own)
                slot.length = BLOCK * len(own)
        rests = [list(prompt[BLOCK * len(past) : -1]) for prompt, past in zip(prompts, pasts, strict=True)]
        for start, end in _chunks(list(map(len, rests))):
            self._pass(first + start, rests[start:end], [0] * (end - start))

    def read(self, guesses: Sequence[Sequence[int]]) -> Tensor:
        """Reads the last token of each row, and guesses of what follows it; `accept` must follow.

        Args:
            guesses: Tokens for each row, (n,).

        Returns:
            The logits of what follows the last token of each row and each of its guesses, row after row, float32
            (places, vocabulary).
        """
        tokens = [[slot.last, *guess] for slot, guess in zip(self._slots, guesses, strict=True)]
        self._guessed = list(map(len, guesses))
        return self._pass(0, tokens, list(map(len, tokens)))

    def accept(self, counts: Sequence[int]) -> None:
        """Keeps so many guesses of each row, (n,)."""
        for slot, guessed, count in zip(self._slots, self._guessed, counts, strict=True):
            slot.length -= guessed - count

    def append(self, chosen: Sequence[int]) -> None:
        """Makes the chosen tokens, (n,), those that are read next."""
        for slot, token in zip(self._slots, chosen, strict=True):
            slot.last = token

    def keep(self, order: Sequence[int]) -> None:
        """Puts rows in another order, (k,); a row that is named twice becomes two, and one that is not named leaves."""
        moved = [(place, row) for place, row in enumerate(order) if place != row]
        if moved:
            places, rows = (torch.tensor(column) for column in zip(*moved, strict=True))
            for layer in self._layers:
                layer.copy(rows, places)
        self._slots = [dataclasses.replace(self._slots[row]) for row in order]
        if self._guessed:
            self._guessed = [self._guessed[row] for row in order]

    def known(self, row: int) -> int:
        """Returns how many tokens of a row were known when it came."""
        return BLOCK * len(self._slots[row].past)

    def held(self, row: int, end: int) -> KeysAndValues:
        """Returns the keys and values of a row's tokens from `known` on, up to a place in its text."""
        start = self._slots[row].start
        own = slice(self.known(row) - start, end - start)
        return KeysAndValues(
            *(torch.stack([layer.memory[which][row, :, own] for layer in self._layers]) for which in (0, 1))
        )

    def _beginning(self, past: Sequence[KeysAndValues], near: Sequence[Sequence[KeysAndValues]]) -> _Beginning:
        """Chooses what a row has in common with those that are near: what spares most, all rows taken together."""
        common = [_common(past, other) for other in near]
        blocks = past[: max(common, key=lambda length: length * sum(other >= length for other in common))]
        present = (slot.beginning for slot in self._slots)
        return next(
            (one for one in present if len(one.blocks) == len(blocks) == _common(one.blocks, blocks)),
            _Beginning(blocks),
        )

    def _write(self, row: int, blocks: Sequence[KeysAndValues]) -> None:
        own = joined(blocks)
        self._read_at(_Reading(torch.full((len(own),), row), torch.arange(len(own)), row, row + 1, len(own)))
        for number, layer in enumerate(self._layers):
            layer.update(own.keys[number, None], own.values[number, None])

    def _read_at(self, reading: _Reading) -> None:
        for layer in self._layers:
            layer.reading = reading

    def _pass(self, first: int, tokens: Sequence[Sequence[int]], kept: Sequence[int]) -> Tensor:
        """Reads tokens of consecutive rows.

        Args:
            first: The first of the rows.
            tokens: Those of each row, (n,).
            kept: How many of the last tokens of each row get logits, (n,).

        Returns:
            The logits, float32 (sum of `kept`, vocabulary).
        """
        slots = self._slots[first : first + len(tokens)]
        counts = torch.tensor([len(row) for row in tokens])
        starts = torch.tensor([slot.length for slot in slots])
        before = torch.tensor([slot.start for slot in slots])
        longest, width = int(counts.max()), int((starts + counts).max())
        rows = torch.arange(len(tokens)).repeat_interleave(counts)
        ends = counts.cumsum(0)
        offsets = torch.arange(len(rows)) - (ends - counts)[rows]
        columns = starts[rows] + offsets
        self._read_at(_Reading(rows + first, columns, first, first + len(tokens), width))
        visible = None
        if starts.any():
            # What pads a row's queries sees its first key: any number will do, but none that is not one.
            seen = starts[:, None] + torch.minimum(torch.arange(longest), counts[:, None] - 1)
            visible = torch.arange(width) <= seen[..., None]
        padded = len(rows) < longest * len(tokens)
        places = rows * longest + offsets if padded else None
        layout = Layout(len(tokens), longest, places, visible, _beginnings(slots))
        with packed_attention(self._model):
            output = self._model(
                input_ids=torch.tensor([[*itertools.chain.from_iterable(tokens)]]),
                position_ids=(before[rows] + columns)[None],
                use_cache=True,
                logits_to_keep=(offsets >= (counts - torch.tensor(kept))[rows]).nonzero().squeeze(-1),
                layout=layout,
                **{CACHE_ARGUMENT: self._cache},
            )
        for slot, row in zip(slots, tokens, strict=True):
            slot.length += len(row)
        return output.logits[0].float()


def _beginnings(slots: Sequence[_Slot]) -> list[tuple[Tensor, KeysAndValues]]:
    """Returns which rows have which beginning."""
    rows: dict[_Beginning, list[int]] = defaultdict(list)
    for number, slot in enumerate(slots):
        if slot.beginning.blocks:
            rows[slot.beginning].append(number)
    return [(torch.tensor(numbers), beginning.joined()) for beginning, numbers in rows.items()]


def _common(one: Sequence[KeysAndValues], other: Sequence[KeysAndValues]) -> int:
    """Returns how many blocks two texts begin with in common."""
    least = min(len(one), len(other))
    return next((place for place in range(least) if one[place] is not other[place]), least)


def _chunks(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Parts rows with so many tokens to read into passes, as (first, end); rows without any need none."""
    start = 0
    while start < len(counts):
        end = start + 1
        while end < len(counts) and (end + 1 - start) * max(counts[start : end + 1]) <= _READ_TOGETHER:
            end += 1
        if any(counts[start:end]):
            yield start, end
        start = end


@dataclass(slots=True)
class _Reading:
    """Where a pass writes keys and values, and which ones its attention gets; the same in all layers.

    Attributes:
        rows: The row of each token, (t,).
        columns: Its place among the row's own tokens, (t,).
        first: The first of the rows that attention gets.
        end: The end of these rows.
        width: The columns that it gets.
    """

    rows: Tensor
    columns: Tensor
    first: int
    end: int
    width: int


class _Layer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values of all rows.

    Attributes:
        reading: What the next pass reads.
        memory: Keys and values, (rows, heads, tokens, size) each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reading = _Reading(torch.tensor([]), torch.tensor([]), 0, 0, 0)
        self.memory: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values of new tokens, (1, heads, t, size), and returns those of the rows that are read."""
        reading = self.reading
        added = (key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        self._grow(reading.end, reading.width, added)
        for held, states in zip(self.memory, added, strict=True):
            held[reading.rows, :, reading.columns] = states
        keys, values = (held[reading.first : reading.end, :, : reading.width] for held in self.memory)
        return keys, values

    def copy(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows to other places, (k,) each."""
        self._grow(int(places.max()) + 1, 0, ())
        for held in self.memory:
            held[places] = held[rows]

    def _grow(self, rows: int, width: int, like: Sequence[Tensor]) -> None:
        """Sets memory aside in large steps, since growing copies it.

        It is cleared: what is hidden may be any number, but must be one.
        """
        before = self.memory
        known, long = (before[0].shape[0], before[0].shape[2]) if before else (0, 0)
        if rows > known or width > long:
            size = (max(known, rows + rows // 4), max(long, width + max(64, width // 4)))
            shapes = [held.shape for held in before] or [(0, states.shape[1], 0, states.shape[2]) for states in like]
            self.memory = [
                held.new_zeros(size[0], shape[1], size[1], shape[3])
                for held, shape in zip(before or like, shapes, strict=True)
            ]
            for new, old in zip(self.memory, before, strict=False):
                new[:known, :, :long] = old
