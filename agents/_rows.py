"""The rows of a batch under way: what each has written, and the tensors of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fate_gym.agents._token_agent import Completion
from fate_gym.agents.kv_cache import BLOCK, CACHE_ARGUMENT, KeysAndValues, batch_cache


@dataclass(frozen=True, slots=True)
class Sample:
    """A request's completion under way.

    Attributes:
        made: The completion.
        uniforms: Random numbers of its own, one a token, (max_new_tokens,).
    """

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


class Batch:
    """The tensors of prompts that share their forward passes.

    Attributes:
        known: Tokens of each row that were known before, (n,).
        mask: 1 on real tokens, read or about to be read, int (n, w). Both the known beginning and the rest of a row are
            padded on the left; where guesses were wrong, there are holes in what was written.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        pasts: Sequence[Sequence[KeysAndValues]],
        layers: int | None,
        room: int,
        device: Any,
    ) -> None:
        self.known = [BLOCK * len(past) for past in pasts]
        rests = [list(prompt[known:]) for prompt, known in zip(prompts, self.known, strict=True)]
        width, longest = max(self.known), max(map(len, rests))
        mask = [
            [0] * (width - known) + [1] * known + [0] * (longest - len(rest)) + [1] * len(rest)
            for known, rest in zip(self.known, rests, strict=True)
        ]
        self.mask = torch.tensor(mask, device=device)
        # Any id pads, since the mask hides it.
        self._ids = torch.tensor([[0] * (longest - len(rest)) + rest for rest in rests], device=device)
        self._cache: Any = None if layers is None else batch_cache(pasts, layers, longest + min(room, 64))
        self._guessed = 0

    def guess(self, guesses: Sequence[Sequence[int]]) -> None:
        """Lets the model read guesses of each row, (n,), in the same pass; `accept` must follow it."""
        self._guessed = most = max(map(len, guesses))
        if most:
            mask = [[1] * len(guess) + [0] * (most - len(guess)) for guess in guesses]
            ids = [[*guess, *[0] * (most - len(guess))] for guess in guesses]
            self.mask = torch.cat([self.mask, torch.tensor(mask, device=self.mask.device)], dim=-1)
            self._ids = torch.cat([self._ids, torch.tensor(ids, device=self.mask.device)], dim=-1)

    def run(self, model: Any) -> tuple[Tensor, Any]:
        """Reads the tokens that are about to be read.

        Returns:
            The logits of what follows the last certain token and each guess, float32 (n, 1 + g, vocabulary), and the
            cache.
        """
        output = model(
            input_ids=self._ids,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0)[:, -self._ids.shape[1] :],
            use_cache=True,
            logits_to_keep=1 + self._guessed,
            **({} if self._cache is None else {CACHE_ARGUMENT: self._cache}),
        )
        self._cache = output[CACHE_ARGUMENT]
        return output.logits[:, -1 - self._guessed :].float(), self._cache

    def accept(self, counts: Sequence[int]) -> None:
        """Hides the guesses of each row, (n,), from this number on: they were wrong."""
        if self._guessed:
            kept = torch.tensor([[1] * count + [0] * (self._guessed - count) for count in counts])
            self.mask[:, -self._guessed :] *= kept.to(self.mask.device)

    def append(self, chosen: Sequence[int]) -> None:
        """Makes the chosen tokens, (n,), those that are read next."""
        self._ids = torch.tensor(chosen, device=self.mask.device)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(chosen), 1)], dim=-1)

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows, (k,); a row that is named twice becomes two."""
        self._cache.batch_select_indices(rows.to(self.mask.device))
        self.known = [self.known[row] for row in rows.tolist()]
        self.mask = self.mask[rows.to(self.mask.device)]
