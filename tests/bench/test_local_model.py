"""A local model on whole conversations against transformers' own generation, which reads every turn from its start."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from transformers import AutoModelForCausalLM

from fate_gym.agents._generation import Generator
from fate_gym.agents._token_agent import GenerationRequest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]

CONVERSATIONS, TURNS, NEW = 8, 3, 16
TOOLS = 800
"""Tokens that all conversations begin with; those of AgentDojo's suites are 1,400 to 4,700."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Reads:
    """Counts the tokens that a model computes, those that pad a batch included."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        self.tokens += given["input_ids"].numel()


def converse(answer: Callable[[Sequence[tuple[int, ...]]], list[list[int]]]) -> list[tuple[int, ...]]:
    """Conversations that share a long beginning; each turn brings what a tool might have answered."""
    system = tuple(torch.randint(20, 250, (TOOLS,), generator=torch.Generator().manual_seed(0)).tolist())
    texts = [(*system, 100 + number, *range(110, 120 + 5 * number)) for number in range(CONVERSATIONS)]
    for turn in range(TURNS):
        texts = [
            (*text, *written, *range(30, 50 + 3 * turn + number))
            for number, (text, written) in enumerate(zip(texts, answer(texts), strict=True))
        ]
    return texts


def test_conversations_read_five_times_fewer_tokens_in_a_fifth_of_the_time(
    tmp_path: Path, table: Callable[..., None]
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 64}
    folder = tiny_model.make_tiny_model(tmp_path / "model", **sizes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # As without `stop_ids`.
    reads = Reads(model)
    generator = Generator(
        model,
        stop_ids=(),
        max_new_tokens=NEW,
        temperature=0.0,
        top_p=1.0,
        cache_bytes=2**30,
        may_learn=False,
    )

    def ours(texts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        return [made.token_ids for made in generator([GenerationRequest(text, 0) for text in texts])]

    def theirs(texts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in texts])
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        made = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return [row[longest:] for row in made.tolist()]

    def measured(answer: Callable[[Sequence[tuple[int, ...]]], list[list[int]]]) -> tuple[Any, float, int]:
        gc.collect()
        before, started = reads.tokens, time.process_time()
        return converse(answer), time.process_time() - started, reads.tokens - before

    their_texts, their_time, their_tokens = measured(theirs)
    our_texts, our_time, our_tokens = measured(ours)
    assert our_texts == their_texts
    for name, mine, peer, unit in (
        ("tokens computed", our_tokens, their_tokens, ""),
        ("time", our_time, their_time, " s"),
    ):
        table(
            f"local model, {CONVERSATIONS} conversations, {name} (peer: transformers)",
            f"{mine:,.1f}{unit}" if unit else f"{mine:,}",
            f"{peer:,.1f}{unit}" if unit else f"{peer:,}",
            f"{peer / mine:.1f}x",
            ">= 5x",
        )
        assert peer / mine >= 5
