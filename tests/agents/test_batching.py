"""The micro-batcher, and generation in batches."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from fate_gym.agents._batching import Completion, GenerationRequest, MicroBatcher, generate, sample
from fate_gym.errors import ContextOverflowError, ProviderError


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Doubler:
    """Doubles numbers in batches and remembers their sizes; more than `room` numbers at once do not fit.

    A batch that runs waits for `gate`, so that a test decides what arrives meanwhile.
    """

    def __init__(self, *, room: int = 99, gate: threading.Event | None = None) -> None:
        self.room = room
        self.gate = gate
        self.running = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, numbers: list[int]) -> list[int]:
        self.sizes.append(len(numbers))
        self.running.set()
        if self.gate is not None:
            assert self.gate.wait(timeout=60)
        if len(numbers) > self.room:
            raise MemoryError
        return [2 * number for number in numbers]


def batcher(run: Any, **options: Any) -> MicroBatcher[Any, Any]:
    # A batch that is not full starts after `delay`: long enough for a busy machine to submit the rest of it.
    return MicroBatcher(run, **{"max_batch": 8, "too_large": MemoryError, "delay": 0.5, **options})


def test_requests_that_wait_run_together_and_keep_their_order() -> None:
    run = Doubler()
    made = batcher(run)

    async def main() -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(20)))

    assert asyncio.run(main()) == [2 * number for number in range(20)]
    assert run.sizes == [8, 8, 4]
    made.close()


def test_a_lone_request_does_not_wait_for_company() -> None:
    run = Doubler()
    made = batcher(run)

    async def main() -> int:
        return await asyncio.wait_for(made.submit(1), timeout=30)

    assert asyncio.run(main()) == 2
    assert run.sizes == [1]
    made.close()


def test_the_event_loop_runs_on_while_a_batch_does() -> None:
    run = Doubler(gate=threading.Event())
    made = batcher(run, delay=0)

    async def main() -> int:
        answer = asyncio.ensure_future(made.submit(1))
        await asyncio.to_thread(run.running.wait, 60)
        assert not answer.done()
        run.gate.set()  # By the loop itself, which a batch that blocked it could not do.
        return await answer

    assert asyncio.run(main()) == 2
    made.close()


def test_one_batcher_serves_one_event_loop_after_another() -> None:
    made = batcher(Doubler())
    assert [asyncio.run(made.submit(number)) for number in (1, 2)] == [2, 4]
    made.close()


def test_a_batch_that_does_not_fit_is_halved_and_the_size_grows_back() -> None:
    run = Doubler(room=3)
    made = batcher(run)

    async def main(count: int) -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(count)))

    assert asyncio.run(main(8)) == [2 * number for number in range(8)]
    assert run.sizes == [8, 4, 2, 2, 4, 2, 2]
    run.sizes, run.room = [], 99
    assert asyncio.run(main(30)) == [2 * number for number in range(30)]
    assert run.sizes[0] < 8
    assert max(run.sizes) == 8
    made.close()


def test_what_a_failed_batch_held_is_freed_before_the_next_try() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def run(numbers: list[int]) -> list[int]:
        assert all(reference() is None for reference in held)
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(numbers) > 1:
            raise MemoryError
        return numbers

    made = batcher(run)

    async def main() -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(4)))

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert len(held) == 7
    made.close()


def test_a_request_that_fits_not_even_alone_overflows_and_the_others_are_answered() -> None:
    def run(numbers: list[int]) -> list[int]:
        if 3 in numbers:
            raise MemoryError
        return numbers

    made = batcher(run)

    async def main() -> list[Any]:
        return await asyncio.gather(*(made.submit(number) for number in range(6)), return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers.pop(3), ContextOverflowError)
    assert answers == [0, 1, 2, 4, 5]
    made.close()


def test_an_error_reaches_all_of_its_batch_and_the_next_batch_runs() -> None:
    def run(numbers: list[int]) -> list[int]:
        if 0 in numbers:
            raise KeyError("broken")
        return numbers

    made = batcher(run)

    async def main(numbers: Sequence[int]) -> list[Any]:
        return await asyncio.gather(*(made.submit(number) for number in numbers), return_exceptions=True)

    assert all(isinstance(answer, KeyError) for answer in asyncio.run(main([0, 1])))
    assert asyncio.run(main([1, 2])) == [1, 2]
    made.close()


def test_a_request_whose_caller_has_gone_is_not_run() -> None:
    run = Doubler(gate=threading.Event())
    made = batcher(run, max_batch=1)

    async def main() -> int:
        first = asyncio.ensure_future(made.submit(1))
        await asyncio.to_thread(run.running.wait, 60)
        gone = asyncio.ensure_future(made.submit(2))
        last = asyncio.ensure_future(made.submit(3))
        await asyncio.sleep(0)  # Both are submitted now, and wait behind the first.
        gone.cancel()
        # Only when it has ended does the batcher, in its own thread, know that nobody waits for it.
        await asyncio.wait([gone])
        run.gate.set()
        assert await first == 2
        return await last

    assert asyncio.run(main()) == 6
    assert run.sizes == [1, 1]
    made.close()


def test_closing_answers_what_runs_and_turns_away_what_waits() -> None:
    run = Doubler(gate=threading.Event())
    before = set(threading.enumerate())
    made = batcher(run, max_batch=1)

    async def main() -> list[Any]:
        requests = [asyncio.ensure_future(made.submit(number)) for number in range(3)]
        await asyncio.to_thread(run.running.wait, 60)
        closing = asyncio.ensure_future(asyncio.to_thread(made.close))
        turned_away = await asyncio.gather(*requests[1:], return_exceptions=True)
        run.gate.set()
        await closing
        answers = [await requests[0], *turned_away]
        with pytest.raises(ProviderError, match="closed"):
            await made.submit(4)
        return answers

    first, *others = asyncio.run(main())
    assert first == 0
    assert [type(other) for other in others] == [ProviderError, ProviderError]
    assert "fate-gym-batcher" not in {thread.name for thread in set(threading.enumerate()) - before}


# Generation.

STOP = 2
PROMPTS = [(5, 6, 7), (100,), tuple(range(20, 80)), (9, 8, 7, 6, 5, 4), (200, 201, 202)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_model.make_tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def complete(model: Any, prompts: Sequence[tuple[int, ...]], **options: Any) -> list[Completion]:
    requests = [GenerationRequest(prompt, seed=sum(prompt)) for prompt in prompts]
    options = {"stop_ids": {STOP}, "max_new_tokens": 40, "temperature": 0.0, "top_p": 1.0, **options}
    return generate(model, requests, **options)


def test_batched_equals_unbatched_token_for_token_under_greedy_decoding(model: Any) -> None:
    alone = [complete(model, [prompt])[0].token_ids for prompt in PROMPTS]
    assert [done.token_ids for done in complete(model, PROMPTS)] == alone
    assert len({tuple(ids) for ids in alone}) == len(PROMPTS)


def test_greedy_decoding_is_what_transformers_does(model: Any) -> None:
    ids = torch.tensor([PROMPTS[2]])
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert complete(model, [PROMPTS[2]])[0].token_ids == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_sample_does_not_depend_on_who_shares_its_batch(model: Any, top_p: float) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_p": top_p}
    together = [done.token_ids for done in complete(model, PROMPTS, **options)]
    assert [complete(model, [prompt], **options)[0].token_ids for prompt in PROMPTS] == together
    assert [done.token_ids for done in complete(model, PROMPTS[::-1], **options)] == together[::-1]
    other_seed = generate(
        model, [GenerationRequest(PROMPTS[0], seed=77)], stop_ids={STOP}, max_new_tokens=40, **options
    )
    assert other_seed[0].token_ids != together[0]


def test_many_prompts_are_answered_in_their_order(model: Any) -> None:
    few = [done.token_ids for done in complete(model, PROMPTS, temperature=1.5, max_new_tokens=5)]
    many = [done.token_ids for done in complete(model, PROMPTS * 14, temperature=1.5, max_new_tokens=5)]
    assert many == few * 14


def test_a_row_that_has_stopped_leaves_the_others_as_they_were(model: Any) -> None:
    whole = [done.token_ids for done in complete(model, PROMPTS)]
    stops = {whole[0][3], whole[2][10]}

    def until_stop(ids: list[int]) -> list[int]:
        return ids[: next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))]

    stopped = [done.token_ids for done in complete(model, PROMPTS, stop_ids=stops)]
    assert stopped == [until_stop(ids) for ids in whole]
    assert len({len(ids) for ids in stopped}) > 1


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_log_probabilities_are_those_of_a_fresh_forward_pass(model: Any, temperature: float, top_p: float) -> None:
    done = complete(model, PROMPTS, temperature=temperature, top_p=top_p)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
        logprobs = logits.log_softmax(-1)
        if top_p < 1:
            logprobs = torch.stack([nucleus(row, top_p) for row in logprobs])
        expected = logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None]).squeeze(-1)
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


def nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The definition, one token after another."""
    kept, mass = [], 0.0
    for index in logprobs.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        kept.append(index)
        mass += float(logprobs[index].exp())
    cut = torch.full_like(logprobs, float("-inf"))
    cut[kept] = logprobs[kept]
    return cut.log_softmax(-1)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    uniforms = (torch.arange(1000) + 0.5) / 1000
    drawn, logprobs = sample(logits.expand(1000, -1), uniforms.double(), 1.0, 1.0)
    assert torch.bincount(drawn, minlength=4).tolist() == [500, 200, 200, 100]
    assert torch.allclose(logprobs, logits[drawn], atol=1e-5)
    drawn, logprobs = sample(logits.expand(1000, -1), uniforms.double(), 1.0, 0.6)
    assert sorted(torch.bincount(drawn, minlength=4).tolist()) == [0, 0, 286, 714]
    assert torch.allclose(logprobs.exp().unique(), torch.tensor([2 / 7, 5 / 7]))


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([float("-inf"), -30.0, -1.0, 0.0, 2.0]), min_size=1, max_size=6).filter(
        lambda logits: max(logits) > float("-inf")
    ),
    st.sampled_from([0.0, 0.5, 1 - 2**-53]),
    st.sampled_from([1e-3, 0.5, 1.0]),
)
def test_an_impossible_token_is_never_drawn(logits: list[float], uniform: float, top_p: float) -> None:
    _, logprobs = sample(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), 1.0, top_p)
    assert logprobs.isfinite().all()
