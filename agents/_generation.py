"""Generation with a model of transformers: prompts in batches, each with random numbers of its own."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from fate_gym.agents._attention import can_pack
from fate_gym.agents._drafts import ALIKE, Drafts
from fate_gym.agents._packed import PackedBatch
from fate_gym.agents._rows import PaddedBatch, Row, Sample
from fate_gym.agents._token_agent import Completion, GenerationRequest
from fate_gym.agents.kv_cache import (
    BLOCK,
    KeysAndValues,
    PrefixStore,
    can_share,
)

_TOGETHER_ON_CPU: Final = 64

_GUESSED: Final = 64
"""Guessed tokens of a forward pass, over all rows: on a CPU so many cost about as much as the pass itself."""

_GUESSED_A_ROW: Final = 16

# By the size of the vocabulary. Generators share it, since training makes one a step: a guess from another model does
# no harm, but a token that a model does not have would.
_DRAFTS: Final[dict[int, Drafts]] = defaultdict(Drafts)


Batch: TypeAlias = PackedBatch | PaddedBatch


class Generator:
    """Generates for batches of prompts, and reads no beginning of a prompt twice.

    It reads guesses of what comes next, and keeps those that come true (see `Drafts`): one forward pass gives several
    tokens of a text like earlier ones. Requests with the same prompt are one row until their samples differ.

    Not `model.generate`, because a request's sample must not depend on who shares its batch: each draws from random
    numbers of its own. (The last bits of its logits do depend on the batch, as in any batched arithmetic.)

    Args:
        model: A transformers causal language model, perhaps with an adapter.
        stop_ids: Tokens that end a completion.
        max_new_tokens: Most tokens of a completion.
        temperature: 0 for greedy decoding.
        top_p: Probability mass that is kept, in (0, 1].
        cache_bytes: Most memory for keys and values that are kept between batches.
        may_learn: Whether the model's weights may change between batches; what was kept is then worth nothing.
    """

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: Collection[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        cache_bytes: int,
        may_learn: bool,
    ) -> None:
        self._model = model
        self._may_learn = may_learn
        self._stop_ids = stop_ids
        self._max_new_tokens = max_new_tokens
        self._temperature, self._top_p = temperature, top_p
        # A model with sliding windows or states makes the cache that it needs, and nothing of it is kept.
        self._layers = model.config.get_text_config().num_hidden_layers if can_share(model) else None
        self._store = PrefixStore(cache_bytes)
        self._drafts = _DRAFTS[model.config.get_text_config().vocab_size]
        self._shares = self._layers is not None and cache_bytes > 0
        self._packs = can_pack(model)

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generates for prompts, (n,), and returns their completions in order.

        Raises:
            torch.OutOfMemoryError: They do not fit in memory together. Nothing is kept between batches then.
        """
        return [completion for _, completion in sorted(self.answers(requests), key=lambda answer: answer[0])]

    def answers(
        self, requests: Sequence[GenerationRequest], join: Callable[[], Sequence[GenerationRequest]] = tuple
    ) -> Iterator[tuple[int, Completion]]:
        """Generates for prompts, and yields each completion as it ends, with the place of its request.

        Args:
            requests: Prompts, (n,); their places are 0 to n - 1.
            join: Called between passes: returns further requests that have come, whose places follow.

        Raises:
            torch.OutOfMemoryError: They do not fit in memory together. Nothing is kept between batches then.
        """
        if self._may_learn:
            self._store.renew(_fingerprint(self._model))
        count = 0
        waiting: list[Row] = []
        rows: list[Row] = []
        batch: Batch = self._batch()
        new = requests
        try:
            while new or waiting or rows:
                with torch.inference_mode():
                    waiting += self._asked(new, count)
                    rows += self._admit(batch, waiting, rows)
                    ended = self._step(batch, rows)
                yield from ended
                count += len(new)
                batch = batch if rows else self._batch()
                new = join()
        except torch.OutOfMemoryError:
            self._store.clear()
            raise

    def _batch(self) -> Batch:
        if self._packs:
            return PackedBatch(self._model)
        return PaddedBatch(self._model, self._layers, self._max_new_tokens)

    def _asked(self, requests: Sequence[GenerationRequest], first: int) -> list[Row]:
        """Makes a row of all requests with the same prompt, and reads what prompts begin with in common."""
        rows: dict[tuple[int, ...], Row] = {}
        for place, request in enumerate(requests, first):
            uniforms = _uniforms(request.seed, self._max_new_tokens).to(self._model.device)
            row = rows.setdefault(request.prompt_ids, Row(request.prompt_ids, [], last=request.prompt_ids[-1]))
            row.samples.append(Sample(place, Completion(), uniforms))
        self._read_common(rows)
        # Rows with about as much to read go together, since padding costs as much as text on a CPU.
        return sorted(rows.values(), key=lambda row: len(row.prompt_ids) - BLOCK * len(self._known(row.prompt_ids)))

    def _admit(self, batch: Batch, waiting: list[Row], rows: Sequence[Row]) -> list[Row]:
        """Takes rows from those that wait and adds them to the batch, as far as there is room."""
        if rows and not batch.joins:
            return []
        # On a CPU a larger batch gains nothing.
        room = _TOGETHER_ON_CPU if self._model.device.type == "cpu" else sys.maxsize
        room -= sum(len(row.samples) for row in rows)
        added: list[Row] = []
        while waiting and (room >= len(waiting[0].samples) or not (rows or added)):
            added.append(waiting.pop(0))
            room -= len(added[-1].samples)
        if added:
            prompts = [row.prompt_ids for row in added]
            batch.add(prompts, [self._known(prompt) for prompt in prompts])
            if batch.joins:
                # Now, so that those who join find it.
                for place, prompt in enumerate(prompts, len(rows)):
                    self._keep(prompt[:-1], batch, place)
        return added

    def _known(self, ids: Sequence[int]) -> list[KeysAndValues]:
        # Without the last token: the model has to read one, since it answers with what follows it.
        return self._store.read(ids[:-1]) if self._shares else []

    def _read_common(self, prompts: Iterable[tuple[int, ...]]) -> None:
        """Reads once what several prompts of a batch begin with, as long as there is such a beginning."""
        waiting = list(prompts) if self._shares else []
        while waiting:
            alike: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
            for prompt in waiting:
                # All that is known of it, and one block more. Its last token is left to be read with the rest.
                beginning = prompt[: BLOCK * (len(self._known(prompt)) + 1)]
                if len(beginning) < len(prompt):
                    alike[beginning].append(prompt)
            groups = [together for together in alike.values() if len(together) > 1]
            beginnings = [_common_blocks(together) for together in groups]
            for start in range(0, len(beginnings), _TOGETHER_ON_CPU):
                self._read(beginnings[start : start + _TOGETHER_ON_CPU])
            # Some of a group may go on alike. Where memory was too small for the beginning, there is no more to gain.
            waiting = [
                prompt
                for beginning, together in zip(beginnings, groups, strict=True)
                if BLOCK * len(self._store.read(beginning)) == len(beginning)
                for prompt in together
            ]

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Reads prompts and keeps their keys and values."""
        batch = self._batch()
        batch.add(prompts, [self._known(prompt) for prompt in prompts])
        batch.read([()] * len(prompts))
        for row, prompt in enumerate(prompts):
            self._keep(prompt, batch, row)

    def _keep(self, ids: Sequence[int], batch: Batch, row: int) -> None:
        if self._shares and len(ids) >= batch.known(row) + BLOCK:
            self._store.write(ids, batch.held(row, len(ids)), batch.known(row))

    def _step(self, batch: Batch, rows: list[Row]) -> list[tuple[int, Completion]]:
        """Makes one pass, changes the rows as it turns out, and returns the completions that have ended."""
        self._guess(rows)
        drawn = self._draw(rows, batch.read([row.guess for row in rows]))
        branches = [row.branches(drawn, self._stop_ids, self._max_new_tokens) for row in rows]
        # A row's further ways to go on come after all rows.
        further = [(index, part) for index, parts in enumerate(branches) for part in parts[1:]]
        rows[:] = [*(parts[0] for parts in branches), *(part for _, part in further)]
        if further:
            batch.keep([*range(len(branches)), *(index for index, _ in further)])
        batch.accept([row.accepted for row in rows])
        ended: list[tuple[int, Completion]] = []
        for index, row in enumerate(rows):
            if row.samples and row.is_over(self._stop_ids, self._max_new_tokens):
                ids = (*row.prompt_ids, *row.written)
                # The last token has not been read, so it has no keys yet.
                self._keep(ids[:-1], batch, index)
                self._drafts.learn(ids, batch.known(index), len(row.prompt_ids))
                ended += [(one.place, one.made) for one in row.samples]
                row.samples = []
        live = [index for index, row in enumerate(rows) if row.samples]
        if not live:
            rows.clear()
            return ended
        if len(live) < len(rows) and len(live) <= batch.most_live * len(rows):
            order = _without_holes(live)
            batch.keep(order)
            rows[:] = [rows[index] for index in order]
        batch.append([row.last for row in rows])
        return ended

    def _guess(self, rows: Sequence[Row]) -> None:
        """Guesses how rows go on."""
        live = sum(bool(row.samples) for row in rows)
        # Holes in a cache, which wrong guesses leave, are masked; a sliding window would count them.
        most = 0 if self._layers is None else min(max(_GUESSED // live, 1), _GUESSED_A_ROW)
        for row in rows:
            written = row.written
            # The token after the last guess is drawn as well.
            left = self._max_new_tokens - len(written) - 1 if row.samples else 0
            row.guess = self._drafts.guess((*row.prompt_ids[-ALIKE:], *written[-ALIKE:]), min(most, left))

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> Iterator[tuple[int, float]]:
        """Draws for each sample the tokens after what is certain of it and after each guess, with logprobs."""
        starts = itertools.accumulate((1 + len(row.guess) for row in rows), initial=0)
        places = [
            start + place
            for start, row in zip(starts, rows, strict=False)
            for _ in row.samples
            for place in range(1 + len(row.guess))
        ]
        uniforms = [
            one.uniforms[len(row.written) : len(row.written) + 1 + len(row.guess)]
            for row in rows
            for one in row.samples
        ]
        drawn = sample(
            logits[torch.tensor(places, device=logits.device)], torch.cat(uniforms), self._temperature, self._top_p
        )
        return zip(*(values.tolist() for values in drawn), strict=True)


def sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws a token a row by inverting the cumulative distribution.

    Args:
        logits: (n, vocabulary), float32.
        uniforms: One random number a row, in [0, 1), (n,), float64.
        temperature: 0 for the likeliest token, whose log-probability is then the one at temperature 1.
        top_p: Probability mass that is kept, in (0, 1]; 1 keeps all.

    Returns:
        The drawn ids and their log-probabilities under the distribution that they were drawn from, (n,) each.
    """
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.argmax(-1)
    else:
        logprobs = (logits / temperature).log_softmax(-1)
        if top_p < 1:
            logprobs = _nucleus(logprobs, top_p)
        # In the order of the vocabulary: an order by probability would turn on the last bits of near ties.
        cumulative = logprobs.double().exp().cumsum(-1)
        total = cumulative[:, -1:]
        # Rounding may lift the target to the total itself, which no token lies beyond.
        target = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return chosen, logprobs.gather(-1, chosen[:, None]).squeeze(-1)


def _nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """Keeps the likeliest tokens that together reach `top_p` (Holtzman et al., 2020), and normalises again."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    mass_above = ordered.exp().cumsum(-1) - ordered.exp()
    kept = ordered.masked_fill(mass_above >= top_p, float("-inf"))
    return kept.gather(-1, order.argsort(-1)).log_softmax(-1)


def _without_holes(live: Sequence[int]) -> list[int]:
    """Returns an order of rows in which the last ones take the places of those that have ended: few are moved."""
    staying = {index for index in live if index < len(live)}
    moved = [index for index in live if index >= len(live)]
    return [index if index in staying else moved.pop() for index in range(len(live))]


def _common_blocks(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the whole blocks that all prompts begin with, without the last token of any."""
    first, last = min(prompts), max(prompts)  # In the order of words in a dictionary, these two differ earliest.
    most = min(map(len, prompts)) - 1
    common = next((place for place in range(most) if first[place] != last[place]), most)
    return first[: common // BLOCK * BLOCK]


def _fingerprint(model: Any) -> tuple[float, ...]:
    """Returns a value that differs whenever the weights do: sums, at the cost of about one token's forward pass.

    torch counts the versions of a tensor, but its fused optimisers change weights without counting.
    """
    return tuple(float(weights.detach().sum(dtype=torch.float64)) for weights in model.parameters())


def _uniforms(seed: int, count: int) -> Tensor:
    """A request's own random numbers, the same on every device, (count,)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
