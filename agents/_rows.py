"""The rows of a batch under way: what each has written, and the tensors of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fate_gym.agents._token_agent import Completion
from fate_gym.agents.kv_cache import BLOCK, CACHE_ARGUMENT, KeysAndValues, batch_cache, row_of


@dataclass(frozen=True, slots=True)
class Sample:
    """A request's completion under way.

    Attributes:
        place: The place of the request among all that were made.
        made: The completion.
        uniforms: Random numbers of its own, one a token, (max_new_tokens,).
    """

    place: int
    made: Completion
    uniforms: Tensor


@dataclass(slots=True)
class Row:
    """A text under way: a prompt, and what all of some samples have written after it.

    Attributes:
        prompt_ids: The prompt.
        samples: Those that go on from here; none once they have ended.
        guess: Tokens that may come next.
        accepted: How many guesses of the last pass came true.
        last: The last token that was written.
    """

    prompt_ids: tuple[int, ...]
    samples: list[Sample]
    guess: Sequence[int] = ()
    accepted: int = 0
    last: int = 0

    @property
    def written(self) -> list[int]:
        """What follows the prompt so far."""
        return self.samples[0].made.token_ids if self.samples else []

    def is_over(self, stop_ids: Collection[int], most: int) -> bool:
        """Whether nothing more follows."""
        return self.last in stop_ids or len(self.written) == most

    def branches(self, drawn: Iterator[tuple[int, float]], stop_ids: Collection[int], most: int) -> list[Row]:
        """Lets each sample take what was drawn for it: a token, and one more for each guess that came true.

        Returns:
            A row for each way to go on.
        """
        alike: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
        for one in self.samples:
            made, before = one.made, len(one.made.token_ids)
            going = True
            for guessed in (*self.guess, None):
                token, logprob = next(drawn)
                if going:
                    made.token_ids.append(token)
                    made.logprobs.append(logprob)
                    going = token == guessed and token not in stop_ids and len(made.token_ids) < most
            alike[tuple(made.token_ids[before:])].append(one)
        if not alike:
            return [Row(self.prompt_ids, [], last=self.last)]
        return [Row(self.prompt_ids, ones, accepted=len(new) - 1, last=new[-1]) for new, ones in alike.items()]


class PaddedBatch:
    """Prompts that share their forward passes, whatever the model's attention and device; none is added later.

    Attributes:
        joins: Whether rows can be added to those under way.
        most_live: The share of rows, at most, at which those that have ended leave: each leave copies the whole cache.
    """

    joins = False
    most_live = 0.75

    def __init__(self, model: Any, layers: int | None, room: int) -> None:
        self._model, self._layers, self._room = model, layers, room

    def add(self, prompts: Sequence[Sequence[int]], pasts: Sequence[Sequence[KeysAndValues]]) -> None:
        """Sets the rows.

        Args:
            prompts: Token ids, (n,).
            pasts: The blocks that are known of each, (n,).
        """
        layers, room, device = self._layers, self._room, self._model.device
        self._known = [BLOCK * len(past) for past in pasts]
        rests = [list(prompt[known:]) for prompt, known in zip(prompts, self._known, strict=True)]
        width, longest = max(self._known), max(map(len, rests))
        mask = [
            [0] * (width - known) + [1] * known + [0] * (longest - len(rest)) + [1] * len(rest)
            for known, rest in zip(self._known, rests, strict=True)
        ]
        # 1 on real tokens, read or about to be read, int (n, w). Both the known beginning and the rest of a row are
        # padded on the left; where guesses were wrong, there are holes in what was written.
        self._mask = torch.tensor(mask, device=device)
        # Any id pads, since the mask hides it.
        self._ids = torch.tensor([[0] * (longest - len(rest)) + rest for rest in rests], device=device)
        self._cache: Any = None if layers is None else batch_cache(pasts, layers, longest + min(room, 64))

    def read(self, guesses: Sequence[Sequence[int]]) -> Tensor:
        """Reads what is unread of each row, and guesses of what follows it; `accept` must follow.

        Args:
            guesses: Tokens for each row, (n,).

        Returns:
            The logits of what follows the last certain token of each row and each of its guesses, row after row,
            float32 (places, vocabulary).
        """
        most = max(map(len, guesses))
        if most:
            mask = [[1] * len(guess) + [0] * (most - len(guess)) for guess in guesses]
            ids = [[*guess, *[0] * (most - len(guess))] for guess in guesses]
            self._mask = torch.cat([self._mask, torch.tensor(mask, device=self._mask.device)], dim=-1)
            self._ids = torch.cat([self._ids, torch.tensor(ids, device=self._mask.device)], dim=-1)
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._ids.shape[1] :],
            use_cache=True,
            logits_to_keep=1 + most,
            **({} if self._cache is None else {CACHE_ARGUMENT: self._cache}),
        )
        self._cache = output[CACHE_ARGUMENT]
        self._guessed = most
        places = [(row, place) for row, guess in enumerate(guesses) for place in range(1 + len(guess))]
        row, place = torch.tensor(places, device=output.logits.device).T
        return output.logits[:, -1 - most :][row, place].float()

    def accept(self, counts: Sequence[int]) -> None:
        """Keeps so many guesses of each row, (n,), and hides the others."""
        if self._guessed:
            kept = torch.tensor([[1] * count + [0] * (self._guessed - count) for count in counts])
            self._mask[:, -self._guessed :] *= kept.to(self._mask.device)

    def append(self, chosen: Sequence[int]) -> None:
        """Makes the chosen tokens, (n,), those that are read next."""
        self._ids = torch.tensor(chosen, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=-1)

    def keep(self, order: Sequence[int]) -> None:
        """Puts rows in another order, (k,); a row that is named twice becomes two, and one that is not named leaves."""
        if order:
            rows = torch.tensor(order, device=self._mask.device)
            self._cache.batch_select_indices(rows)
            self._mask = self._mask[rows]
        self._known = [self._known[row] for row in order]

    def known(self, row: int) -> int:
        """Returns how many tokens of a row were known when it came."""
        return self._known[row]

    def held(self, row: int, end: int) -> KeysAndValues:
        """Returns the keys and values of a row's tokens from `known` on, up to a place in its text."""
        return row_of(self._cache, row, self._mask[row].nonzero().squeeze(-1)[self._known[row] : end])
