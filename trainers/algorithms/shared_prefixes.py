"""Rows of token ids that share beginnings, laid out so that a model reads each beginning once.

The rollouts of a group have one prompt, and a policy that knows its task writes much of them alike: of the tokens of a
batch often more than half stand in a beginning that was there before. Rows that begin alike become one sequence, a tree
of tokens, in which a token attends to those before it in its own rows alone. Its position is the one it has in them, so
its hidden state, and the gradient, are the same as in rows of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""The label of a token whose next token nobody asks for."""


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Rows in the form in which a model reads them: b trees, padded on the right to t tokens.

    Attributes:
        ids: Token ids, (b, t).
        positions: The position of each token in its rows, (b, t).
        attends: True where a token attends to another one, (b, 1, t, t); None where every tree is one row, so that
            plain causal attention, which is faster, does the same.
        labels: The token that follows in the rows that share a token, (b, t); `IGNORED` where no completion has it.
        places: Where among all b * t tokens the one stands that precedes each token of a completion, (n, c).
        completion: 1 on real tokens of completions, (n, c).
    """

    ids: Tensor
    positions: Tensor
    attends: Tensor | None
    labels: Tensor
    places: Tensor
    completion: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, completion: int, *, share: bool) -> SharedPrefixes:
        """Lays out rows as TRL has them.

        Args:
            ids: Prompts, padded on the left, and completions, padded on the right, (n, p + c). A row shares its
                beginning with the row before it: see `alphabetical`.
            mask: 1 on real tokens, (n, p + c).
            completion: c.
            share: Whether rows may share a tree; otherwise each has its own.
        """
        rows = _real_tokens(ids, mask)
        prompts = mask[:, :-completion].sum(-1).tolist()
        trees: list[_Tree] = []
        paths: list[tuple[int, list[int]]] = []
        for row, prompt in zip(rows, prompts, strict=True):
            # A row that would add more than it shares has a tree of its own: attention costs the square of a tree.
            if not (share and trees and 2 * trees[-1].shared(row) > len(row)):
                trees.append(_Tree())
            path = trees[-1].add(row, prompt)
            paths.append((len(trees) - 1, path[max(prompt - 1, 0) :]))
        width = max(len(tree.ids) for tree in trees)
        places = _padded([[tree * width + token for token in path] for tree, path in paths], completion, 0)
        one_row_each = len(trees) == len(rows)
        attends = None if one_row_each else torch.from_numpy(np.stack([tree.attends(width) for tree in trees]))[:, None]
        positions = _padded([tree.positions for tree in trees], width, 0)
        if one_row_each:
            # Padding counts on: transformers takes a position that jumps for the beginning of another sequence.
            positions = torch.arange(width).expand(len(trees), width)
        device = ids.device
        return cls(
            _padded([tree.ids for tree in trees], width, 0).to(device),
            positions.to(device),
            None if attends is None else attends.to(device),
            _padded([tree.labels for tree in trees], width, IGNORED).to(device),
            places.to(device),
            mask[:, -completion:],
        )

    def unpack(self, values: Tensor) -> Tensor:
        """Returns what stands at each token, (b, t), where TRL expects it for the next one, (n, c); 0 on padding."""
        taken = values.flatten().index_select(0, self.places.flatten()).view_as(self.places)
        return taken * self.completion


def alphabetical(ids: Tensor, mask: Tensor) -> Tensor:
    """Returns the order in which rows that begin alike follow each other, (n,); ids and mask (n, w) as in `of`."""
    rows = _real_tokens(ids, mask)
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), device=ids.device)


def _real_tokens(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]


@dataclass(slots=True)
class _Tree:
    """Rows that begin alike, added in the order of a dictionary. Each token stands for one token that follows it.

    Where rows part, the last token that they share is there once for each way to go on: so every token has one label.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    _row: list[int] = field(default_factory=list)
    _paths: list[tuple[list[int], int]] = field(default_factory=list)

    def shared(self, row: Sequence[int]) -> int:
        """Returns how many of the tokens that a row would be read with are there already."""
        alike = next((place for place, (a, b) in enumerate(zip(self._row, row, strict=False)) if a != b), None)
        return max((min(len(self._row), len(row)) if alike is None else alike) - 1, 0)

    def add(self, row: list[int], prompt: int) -> list[int]:
        """Adds a row, and returns where the tokens that precede others of it stand."""
        known = self.shared(row)
        read = max(len(row) - 1, 1)  # Nothing follows the last token; but a tree has a token.
        path = [*(self._paths[-1][0][:known] if known else ()), *range(len(self.ids), len(self.ids) + read - known)]
        self.ids += row[known:read]
        self.positions += range(known, read)
        self.labels += [IGNORED] * (read - known)
        for place in range(max(prompt - 1, 0), len(row) - 1):
            self.labels[path[place]] = row[place + 1]
        self._row = row
        self._paths.append((path, known))
        return path

    def attends(self, width: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """Returns which token attends to which, bool (width, width)."""
        # Padding attends to itself: a softmax over nothing would be NaN.
        matrix = np.eye(width, dtype=np.bool_)
        for path, known in self._paths:
            matrix[np.ix_(path[known:], path)] = np.tri(len(path) - known, len(path), known, dtype=np.bool_)
        return matrix


def _padded(rows: Sequence[list[int]], width: int, filler: int) -> Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
