"""Many waiting requests, one forward pass: the micro-batcher, and what it runs for a local model.

For real speed put the model behind vLLM and use `openai:`: it batches continuously and keeps the KV cache of a
conversation between turns. Here each turn reads its whole prompt again: caches of unlike lengths, kept for every
episode in flight, would take more memory and code than they save at the sizes this is for.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from fate_gym.errors import ContextOverflowError, ProviderError

if TYPE_CHECKING:
    from torch import Tensor

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")
_TOGETHER_ON_CPU = 32

_Job: TypeAlias = tuple[_Request, "Future[_Result]"]


class MicroBatcher(Generic[_Request, _Result]):
    """Runs the requests that wait together, in a thread of its own, so that no event loop is blocked.

    A batch starts when it is full, or when no request has come for `delay`: episodes that were answered together
    come back together, a few milliseconds apart. A batch that does not fit in memory is halved, and so is the next
    one's size, which then grows by one with every batch that fits.

    Args:
        run: Answers a batch, in order; called from the thread.
        max_batch: Most requests in one batch.
        too_large: What `run` raises where a batch does not fit in memory.
        delay: Seconds.
    """

    def __init__(
        self,
        run: Callable[[list[_Request]], Sequence[_Result]],
        *,
        max_batch: int,
        too_large: type[Exception],
        delay: float = 0.01,
    ) -> None:
        self._run = run
        self._max_batch = self._limit = max_batch
        self._too_large = too_large
        self._delay = delay
        self._waiting: deque[_Job[_Request, _Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fate-gym-batcher", daemon=True)
        self._thread.start()

    async def submit(self, request: _Request) -> _Result:
        """Waits for the request's result.

        Raises:
            ContextOverflowError: The request does not fit in memory even alone.
            ProviderError: The batcher is closed.
            Exception: Whatever `run` raised.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._closed:
                raise ProviderError("the agent is closed")
            self._waiting.append((request, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets the running batch finish, turns away what waits and stops the thread."""
        with self._changed:
            self._closed = True
            while self._waiting:
                _, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(ProviderError("the agent is closed"))
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._gather()) is not None:
            # A job whose caller has gone is dropped; from here on the others cannot be cancelled.
            if running := [job for job in jobs if job[1].set_running_or_notify_cancel()]:
                self._serve(running)

    def _gather(self) -> list[_Job[_Request, _Result]] | None:
        """Waits for a batch; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while len(self._waiting) < self._limit and not self._closed:
                if not self._changed.wait(self._delay):
                    break
            if self._closed:
                return None
            return [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]

    def _serve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        fits = True
        try:
            results = self._run([request for request, _ in jobs])
        except self._too_large:
            fits = False
        except Exception as error:
            for _, future in jobs:
                future.set_exception(error)
            return
        # Only here, past the handler, is the traceback gone and with it the memory that the batch had taken.
        if not fits:
            self._halve(jobs)
            return
        self._limit = min(self._max_batch, self._limit + 1)
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)

    def _halve(self, jobs: list[_Job[_Request, _Result]]) -> None:
        if len(jobs) == 1:
            jobs[0][1].set_exception(ContextOverflowError("the prompt does not fit in memory, even alone"))
            return
        self._limit = half = len(jobs) // 2
        self._serve(jobs[:half])
        self._serve(jobs[half:])


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to go on from.

    Attributes:
        prompt_ids: Token ids, (p,).
        seed: Decides the sample, whatever else is in the batch.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(slots=True)
class Completion:
    """What was generated.

    Attributes:
        token_ids: Sampled ids, (t,); the last one is a stop token unless the limit was reached.
        logprobs: Natural-log probability of each under the sampling distribution, (t,).
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate(
    model: Any,
    requests: Sequence[GenerationRequest],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[Completion]:
    """Generates for a batch of prompts, padded on the left; finished ones leave the batch.

    On a CPU, prompts of like length go together, a few at a time: padding costs as much as text there, and so do
    copies of a large cache, while a larger batch gains nothing. (A model of a million parameters answers 128 prompts
    of an agent's in a third of the time.)

    Not `model.generate`, because a request's sample must not depend on who shares its batch: each draws from random
    numbers of its own. (The last bits of its logits do depend on the batch, as in any batched arithmetic.)

    Args:
        model: A transformers causal language model, perhaps with an adapter.
        requests: The prompts, (n,).
        stop_ids: Tokens that end a completion.
        max_new_tokens: Most tokens of a completion.
        temperature: 0 for greedy decoding.
        top_p: Probability mass that is kept, in (0, 1].
    """
    size = _TOGETHER_ON_CPU if model.device.type == "cpu" else max(1, len(requests))
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
    completions = [Completion() for _ in requests]
    for start in range(0, len(order), size):
        together = order[start : start + size]
        _generate_together(
            model,
            [requests[index] for index in together],
            [completions[index] for index in together],
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )
    return completions


def _generate_together(
    model: Any,
    requests: Sequence[GenerationRequest],
    completions: Sequence[Completion],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    """Generates for prompts that share every forward pass, into their completions."""
    import torch

    rows = list(range(len(requests)))  # The request behind each row of the batch.
    ids, mask = (tensor.to(model.device) for tensor in _pad_left([request.prompt_ids for request in requests]))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    uniforms = torch.stack([_uniforms(request.seed, max_new_tokens) for request in requests]).to(model.device)
    cache: dict[str, Any] = {}  # The keys and values of earlier tokens, by the name of the argument that takes them.
    with torch.inference_mode():
        for step in range(max_new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **cache,
            )
            # transformers 5.24 renamed `past_key_values` to `cache`, in a model's output as in its arguments.
            cache = {name: value for name, value in output.items() if name in ("cache", "past_key_values")}
            chosen, logprobs = sample(output.logits[:, -1].float(), uniforms[:, step], temperature, top_p)
            for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
                completions[row].token_ids.append(token)
                completions[row].logprobs.append(logprob)
            live = [index for index, token in enumerate(chosen.tolist()) if token not in stop_ids]
            if not live:
                break
            if len(live) < len(rows):
                keep = torch.tensor(live, device=model.device)
                for layers in cache.values():
                    layers.batch_select_indices(keep)
                rows = [rows[index] for index in live]
                chosen, mask, positions, uniforms = (held[keep] for held in (chosen, mask, positions, uniforms))
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


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
    import torch

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


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (n, longest) each; any id pads, since the mask hides it."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _uniforms(seed: int, count: int) -> Tensor:
    """A request's own random numbers, the same on every device, (count,)."""
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
