"""Generation in batches, and the keys and values that it keeps."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from fate_gym.agents import _generation
from fate_gym.agents._drafts import ALIKE, Drafts
from fate_gym.agents._generation import Generator, sample
from fate_gym.agents._token_agent import Completion, GenerationRequest
from fate_gym.agents.kv_cache import BLOCK, KeysAndValues, PrefixStore


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_generation, "_DRAFTS", defaultdict(Drafts))


STOP = 2
PROMPTS = [(5, 6, 7), (100,), tuple(range(20, 80)), (9, 8, 7, 6, 5, 4), (200, 201, 202)]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With attention of ours, rows unpadded, and with transformers' own, rows padded, as on a GPU."""
    folder = tiny_model.make_tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=request.param).eval()


def generator(model: Any, **options: Any) -> Generator:
    given = {"stop_ids": {STOP}, "max_new_tokens": 40, "temperature": 0.0, "top_p": 1.0, "cache_bytes": 2**30}
    given["may_learn"] = True
    return Generator(model, **{**given, **options})


def complete(model: Any, prompts: Sequence[tuple[int, ...]], **options: Any) -> list[Completion]:
    requests = [GenerationRequest(prompt, seed=sum(prompt)) for prompt in prompts]
    return generator(model, **options)(requests)


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
    other_seed = generator(model, **options)([GenerationRequest(PROMPTS[0], seed=77)])
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


def test_who_joins_later_gets_the_same_sample_and_finds_what_is_kept(model: Any) -> None:
    common = tuple(range(30, 30 + 7 * BLOCK))
    prompts = [(*common, *range(150 + number, 160 + number)) for number in range(6)]
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    options: dict[str, Any] = {"temperature": 1.2}
    alone = [generator(model, **options)([request])[0] for request in requests]
    later = iter([[], requests[2:3], [], requests[3:5], requests[5:]])
    with Reads(model) as reads:
        answers = dict(generator(model, **options).answers(requests[:2], lambda: next(later, [])))
    assert [answers[place].token_ids for place in range(6)] == [one.token_ids for one in alone]
    for place, one in enumerate(alone):
        assert answers[place].logprobs == pytest.approx(one.logprobs, abs=1e-4)
    # The common beginning once, and of each the rest and what it wrote.
    assert reads.tokens <= len(common) + sum(10 + BLOCK + len(one.token_ids) for one in alone)


# What was read is not read again.


class Reads:
    """Counts the real tokens that a model reads."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        self.tokens += (
            given["input_ids"].numel() if mask is None else int(mask[:, -given["input_ids"].shape[1] :].sum())
        )

    def __enter__(self) -> Reads:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def conversation(generate: Generator, turns: int) -> tuple[list[list[int]], list[float]]:
    """Several conversations that share a long beginning, and go on with what was sampled and a few tokens more."""
    system = tuple(range(30, 30 + 5 * BLOCK + 3))
    prompts = [(*system, 100 + number, *range(110, 110 + 7 * number)) for number in range(6)]
    logprobs: list[float] = []
    for turn in range(turns):
        done = generate([GenerationRequest(prompt, seed=31 * turn + row) for row, prompt in enumerate(prompts)])
        logprobs += [value for completion in done for value in completion.logprobs]
        prompts = [
            (*prompt, *completion.token_ids, 5, *range(60, 60 + turn + row))
            for row, (prompt, completion) in enumerate(zip(prompts, done, strict=True))
        ]
    return [list(prompt) for prompt in prompts], logprobs


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_what_is_kept_changes_no_token(model: Any, temperature: float) -> None:
    kept, logprobs = conversation(generator(model, temperature=temperature), turns=4)
    fresh, expected = conversation(generator(model, temperature=temperature, cache_bytes=0), turns=4)
    assert kept == fresh
    assert torch.allclose(torch.tensor(logprobs), torch.tensor(expected), atol=1e-4)


def test_a_beginning_is_read_once(model: Any) -> None:
    with Reads(model) as fresh:
        conversation(generator(model, cache_bytes=0), turns=4)
    with Reads(model) as kept:
        conversation(generator(model), turns=4)
    assert 2 * kept.tokens < fresh.tokens


def test_prompts_of_one_batch_share_their_beginning(model: Any) -> None:
    common = tuple(range(30, 30 + 7 * BLOCK))
    prompts = [(*common, *range(150 + number, 150 + number + BLOCK)) for number in range(5)]
    with Reads(model) as reads:
        # Twice: what is the same to its last token is one prompt.
        generator(model, max_new_tokens=1)([GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts * 2)])
    # The last token of each is left to be read with the rest of its last block.
    assert reads.tokens == 7 * BLOCK + 5 * BLOCK


def test_groups_with_beginnings_of_their_own_and_a_lone_prompt_change_no_token(model: Any) -> None:
    first = range(30, 30 + 2 * BLOCK)
    suites = [(*first, *range(70, 70 + 4 * BLOCK)), (*first, *range(140, 140 + 5 * BLOCK))]
    prompts = [(*suite, 100 + number, *range(110, 110 + 3 * number)) for number in range(4) for suite in suites]
    prompts.append(tuple(range(60, 60 + 3 * BLOCK)))
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    options: dict[str, Any] = {"temperature": 1.2, "max_new_tokens": 12}
    expected = generator(model, cache_bytes=0, **options)(requests)
    generate = generator(model, **options)
    for _ in range(2):
        for made, wanted in zip(generate(requests), expected, strict=True):
            assert made.token_ids == wanted.token_ids
            assert made.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def test_too_little_memory_changes_no_token(model: Any) -> None:
    expected, _ = conversation(generator(model, cache_bytes=0), turns=3)
    for blocks in (0.5, 1, 3):
        few = int(blocks * BLOCK * 4 * 2 * 64 * model.config.num_hidden_layers)
        kept, _ = conversation(generator(model, cache_bytes=few), turns=3)
        assert kept == expected


def test_weights_that_have_changed_read_everything_anew(tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model.make_tiny_model(tmp_path)).eval()
    generate = generator(model)
    before = generate([GenerationRequest(PROMPTS[2], seed=0)])[0]
    # A fused optimiser, since such a one changes weights without counting their versions.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor([PROMPTS[2]])).logits[0, -1, 7].backward()
    optimizer.step()
    after = generate([GenerationRequest(PROMPTS[2], seed=0)])[0]
    assert after.token_ids != before.token_ids
    assert after.token_ids == complete(model, [PROMPTS[2]])[0].token_ids


def test_a_model_with_sliding_windows_keeps_nothing_and_generates_as_transformers_does() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 300}
    config = Gemma3TextConfig(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.tensor([PROMPTS[2]])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=STOP
    )
    generate = generator(model)
    for _ in range(2):
        [done] = generate([GenerationRequest(PROMPTS[2], seed=0)])
        assert done.token_ids == theirs[0, ids.shape[1] :].tolist()


# Guesses change the time that a sample takes, and nothing else.


class Passes:
    """Counts the forward passes of a model."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self._handle = model.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.2, 1.0), (1.5, 0.9)])
def test_what_was_written_before_is_written_again_in_few_passes(model: Any, temperature: float, top_p: float) -> None:
    def talk() -> tuple[list[list[int]], list[float]]:
        return conversation(generator(model, temperature=temperature, top_p=top_p), turns=3)

    with Passes(model) as first:
        expected, logprobs = talk()
    with Passes(model) as second:
        again, others = talk()
    assert again == expected
    apart = (torch.tensor(others) - torch.tensor(logprobs)).abs()
    # The last bit decides whether a token at the edge of a nucleus belongs to it: hardly ever, and never by much.
    assert (apart > 1e-4).float().mean() <= (0 if top_p == 1 else 0.01)
    assert apart.max() < 1e-2
    assert second.count < first.count / 3


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_wrong_guesses_change_no_token(model: Any, monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    expected, logprobs = conversation(generator(model, temperature=temperature), turns=3)
    rng = random.Random(0)
    truth = {tuple(ids[place - ALIKE : place]): ids[place:] for ids in expected for place in range(ALIKE, len(ids))}
    guessed: list[int] = []

    class Liar(Drafts):
        def guess(self, last: Sequence[int], most: int) -> Sequence[int]:
            """Some tokens that will come, then some that will not, a stop among them."""
            true = truth.get(tuple(last[-ALIKE:]), [])[: rng.randrange(most + 1)]
            guessed.append(len(true))
            return [*true, STOP, *rng.sample(range(250), 3)][: rng.randrange(most + 1)]

    monkeypatch.setattr(_generation, "_DRAFTS", defaultdict(Liar))
    kept, others = conversation(generator(model, temperature=temperature), turns=3)
    assert kept == expected
    assert torch.allclose(torch.tensor(others), torch.tensor(logprobs), atol=1e-4)
    assert max(guessed) > 3


def test_requests_with_one_prompt_are_one_row_until_they_differ(model: Any) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 12}
    seeds = [*range(5), 3, 3]
    alone = [generator(model, **options)([GenerationRequest(PROMPTS[2], seed)])[0] for seed in seeds]
    _generation._DRAFTS.clear()
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    mixed = [GenerationRequest(prompt, seed) for seed in seeds for prompt in (PROMPTS[2], PROMPTS[0])]
    together = generator(model, **options)(mixed)[::2]
    handle.remove()
    assert [done.token_ids for done in together] == [done.token_ids for done in alone]
    for done, own in zip(together, alone, strict=True):
        assert done.logprobs == pytest.approx(own.logprobs, abs=1e-4)
    # The two prompts, then a row for each of at most five samples of either.
    rows_alone = 1 if model.config._attn_implementation == "eager" else 2
    assert max(read[rows_alone:]) == 10


def test_a_model_is_given_no_token_that_it_lacks(model: Any) -> None:
    prompt = (5, 6, 7, 8)
    many = Drafts()
    many.learn((*prompt, 250, 251, 252), 0, 0)
    _generation._DRAFTS[model.config.vocab_size] = many
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    small = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=100)).eval()
    assert len(complete(small, [prompt], max_new_tokens=5)[0].token_ids) == 5
    assert model.config.vocab_size > 252


def test_a_guess_ends_where_the_completion_must(model: Any) -> None:
    whole = complete(model, [PROMPTS[2]])[0].token_ids
    assert complete(model, [PROMPTS[2]], max_new_tokens=7)[0].token_ids == whole[:7]
    stop = whole[11]
    assert complete(model, [PROMPTS[2]], stop_ids={stop})[0].token_ids == whole[: whole.index(stop) + 1]


def test_drafts_know_what_followed_last_and_prefer_what_was_written() -> None:
    drafts = Drafts()
    last = tuple(range(ALIKE))
    assert drafts.guess(last, 5) == ()
    drafts.learn((*last, 7, 8, 9), 0, ALIKE)
    assert drafts.guess((99, *last), 2) == (7, 8)
    drafts.learn((*last, 5, 5), 0, 100)
    assert drafts.guess(last, 9) == (7, 8, 9)
    drafts.learn((*last, 6, 6), 0, ALIKE)
    assert drafts.guess(last, 9) == (6, 6)
    # What was known before is not learned again.
    drafts.learn((*last, 4), ALIKE + 1, ALIKE)
    assert drafts.guess(last, 9) == (6, 6)


def test_drafts_forget_the_oldest() -> None:
    drafts = Drafts(capacity=3)
    for number in range(5):
        drafts.learn((*[number] * ALIKE, 1), 0, 0)
    assert [bool(drafts.guess([number] * ALIKE, 1)) for number in range(5)] == [False, False, True, True, True]


def states(tokens: int) -> KeysAndValues:
    return KeysAndValues(
        torch.arange(tokens, dtype=torch.float32).reshape(1, 1, tokens, 1), torch.ones(1, 1, tokens, 2)
    )


def test_the_store_keeps_to_its_capacity_and_drops_the_ends_first() -> None:
    block = states(BLOCK).bytes
    store = PrefixStore(3 * block)
    first, second = tuple(range(3 * BLOCK)), tuple(range(1000, 1000 + BLOCK))
    store.write(first, states(3 * BLOCK), 0)
    assert len(store.read(first)) == 3
    store.write(second, states(BLOCK), 0)
    assert len(store.read(first)) == 2
    assert len(store.read(second)) == 1
    assert len(store.read((*first[:BLOCK], *second))) == 1


def test_the_store_tells_equal_blocks_after_other_beginnings_apart() -> None:
    store = PrefixStore(2**20)
    same = tuple(range(BLOCK))
    store.write((*same, *same), states(2 * BLOCK), 0)
    one, two = store.read((*same, *same))
    assert one.keys[0, 0, 0, 0] == 0
    assert two.keys[0, 0, 0, 0] == BLOCK
    # What goes on from a block that was dropped meanwhile is not kept.
    store.clear()
    store.write((*same, *same), states(BLOCK), BLOCK)
    assert store.read((*same, *same)) == []
