"""Warm-up and DPO: what is learned, what is not, and that a kill loses nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import shop_policy
import tiny_model
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.agents.chat_format import read_chat_template
from fate_gym.agents.local import load_tokenizer
from fate_gym.errors import FateGymError, RunMismatchError, UsageError
from fate_gym.trainers.algorithms.dpo import Pair, dpo
from fate_gym.trainers.algorithms.sequences import Example, collate, digest, log_probs, token_batches
from fate_gym.trainers.algorithms.settings import DPOSettings, SupervisedSettings
from fate_gym.trainers.algorithms.supervised import learn_examples
from fate_gym.trainers.policy import LoraSettings, load_policy

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraSettings(rank=8, alpha=16)
CALL, RIGHT, WRONG, DONE = "<tool_call>", shop_policy.RIGHT, shop_policy.WRONG, shop_policy.DONE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(base)


def example(tokenizer: Any, *turns: str, weight: float = 1.0, tool: str = "<tool_response>") -> Example:
    """A prompt, and turns of one token each with what a tool says between them."""
    ids = tokenizer.convert_tokens_to_ids
    between = [ids(tool), *tokenizer.encode("look: 12345")]
    completion, mask = [], []
    for turn in turns:
        completion += [ids(turn), ids("<|im_end|>"), *between]
        mask += [1, 1, *([0] * len(between))]
    return Example([*tokenizer.encode("Ship parcel 1."), ids(CALL)], completion, mask, weight)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# Sequences.


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (([1], [2, 3], [1]), "a mask of 1 for 2 tokens"),
        (([], [2], [1]), "needs a prompt"),
        (([1], [2], [0]), "a policy token"),
        (([1], [2], [1], 0.0), "a weight above 0"),
        (([1], [2], [1], math.nan), "a weight above 0"),
    ],
)
def test_examples_that_teach_nothing_are_refused(fields: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Example(*fields)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100), st.text(max_size=3))
def test_batches_hold_each_example_once_under_the_budget(lengths: list[int], budget: int, seed: str) -> None:
    batches = token_batches(lengths, budget, seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    assert batches == token_batches(lengths, budget, seed)


def test_log_probabilities_are_those_of_the_whole_logits(base: Path, tokenizer: Any) -> None:
    model, _ = load_policy(base, lora=None)
    examples = [example(tokenizer, RIGHT), example(tokenizer, DONE, WRONG, RIGHT)]
    batch = collate(examples)
    with torch.no_grad():
        found = log_probs(model.eval(), batch)
        for row, one in enumerate(examples):
            ids = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
            whole = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
            written = torch.tensor([0] * (len(one.prompt_ids) - 1) + list(one.mask)).bool()
            assert torch.allclose(found[row][batch["policy_tokens"][row].bool()], whole[written], atol=1e-5)
            assert batch["policy_tokens"][row].sum() == one.policy_tokens
    assert (found[batch["policy_tokens"] == 0] == 0).all()


def test_nothing_is_learned_from_what_tools_said(base: Path, tokenizer: Any) -> None:
    model, _ = load_policy(base, lora=None)

    def gradient(batch: dict[str, Any]) -> list[Any]:
        model.zero_grad()
        log_probs(model, batch).sum().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    # Both rows, so that the positions of each hold tokens that only the other's policy wrote.
    batch = collate([example(tokenizer, RIGHT), example(tokenizer, DONE, WRONG)])
    before = gradient(batch)
    masked = batch["policy_tokens"] == 0
    assert masked.any()
    batch["targets"] = torch.where(masked, (batch["targets"] + 1) % 50, batch["targets"])
    assert all(torch.equal(a, b) for a, b in zip(before, gradient(batch), strict=True))
    # Past the last turn no one reads what the tool said, so other words there change nothing at all.
    one = example(tokenizer, RIGHT)
    others = Example(one.prompt_ids, [*one.completion_ids[:2], *([7] * len(one.mask[2:]))], one.mask)
    first, second = gradient(collate([one])), gradient(collate([others]))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    written = gradient(collate([Example(one.prompt_ids, [9, *one.completion_ids[1:]], one.mask)]))
    assert not all(torch.equal(a, b) for a, b in zip(first, written, strict=True))


# Warm-up.


@pytest.mark.parametrize("lora", [LORA, None])
def test_two_examples_are_learned_by_heart(
    base: Path, tokenizer: Any, tmp_path: Path, lora: LoraSettings | None
) -> None:
    examples = [example(tokenizer, RIGHT), example(tokenizer, RIGHT, DONE)]
    settings = SupervisedSettings(epochs=12, learning_rate=3e-2 if lora else 1e-2, batch_tokens=1000)
    seen: list[dict[str, Any]] = []
    numbers = learn_examples(base, examples, settings, tmp_path, lora=lora, on_step=seen.append)
    assert numbers["losses"][0] > 1
    assert numbers["loss"] < 0.5 * numbers["losses"][0]
    assert numbers["steps"] == len(numbers["losses"]) == 12
    assert numbers["tokens"] == 12 * sum(map(len, examples))
    assert numbers["written"] == 12 * 6
    assert [record["step"] for record in seen] == list(range(1, 13))
    assert seen == [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert shop_policy.share_of(base, CALL, RIGHT) < 0.6
    assert (tmp_path / "adapter").exists() == (lora is not None)
    assert not (tmp_path / "checkpoints").exists()
    # Again: nothing is trained.
    seen.clear()
    assert learn_examples(tmp_path / "gone", examples, settings, tmp_path, lora=lora, on_step=seen.append) == numbers
    assert seen == []


def test_weights_decide_between_examples_that_contradict_each_other(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    ids = tokenizer.convert_tokens_to_ids
    examples = [
        Example([ids(CALL)], [ids(RIGHT)], [1], weight=3.0),
        Example([ids(CALL)], [ids(WRONG)], [1], weight=1.0),
    ]
    learn_examples(base, examples, SupervisedSettings(epochs=60, learning_rate=3e-3), tmp_path, lora=None)
    assert shop_policy.share_of(tmp_path, CALL, RIGHT) == pytest.approx(0.75, abs=0.03)


def test_the_loss_does_not_depend_on_who_shares_a_batch(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    examples = [example(tokenizer, *[RIGHT] * n, weight=n) for n in (1, 2, 3)]
    losses = [
        learn_examples(
            base,
            examples,
            SupervisedSettings(learning_rate=1e-12, batch_tokens=budget),
            tmp_path / str(budget),
            lora=None,
        )["loss"]
        for budget in (1, 60, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert {len((tmp_path / str(b) / "steps.jsonl").read_text().splitlines()) for b in (1, 1000)} == {3, 1}


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def on_step(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Killed

    return on_step


def test_a_killed_training_ends_as_an_unbroken_one(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    examples = [example(tokenizer, RIGHT), example(tokenizer, DONE), example(tokenizer, RIGHT, DONE)]
    settings = SupervisedSettings(epochs=3, learning_rate=1e-2, batch_tokens=1, save_every=2, seed=3)

    def train(name: str, **options: Any) -> dict[str, Any]:
        return learn_examples(base, examples, settings, tmp_path / name, lora=LORA, **options)

    whole = train("whole")
    for step in (1, 6):
        with pytest.raises(Killed):
            train("killed", on_step=kill_at(step))
    # The newest checkpoint is torn, as by a loss of power before it was synced: the one before it serves.
    newest = max((tmp_path / "killed" / "checkpoints").iterdir(), key=lambda path: path.name)
    assert newest.name == "checkpoint-4"
    (newest / "trainer_state.json").write_text('{"global_')
    (newest / "complete").unlink()
    resumed: list[dict[str, Any]] = []
    numbers = train("killed", on_step=resumed.append)
    assert [record["step"] for record in resumed] == list(range(3, 10))
    assert {**numbers, "seconds": 0} == {**whole, "seconds": 0}
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))
    assert digest(examples) != digest(examples[::-1])
    with pytest.raises(RunMismatchError, match="  examples: stored"):
        learn_examples(base, examples[::-1], settings, tmp_path / "killed", lora=LORA)
    with pytest.raises(RunMismatchError, match=r"(?s)  lora.*  seed: stored 3, given 4"):
        learn_examples(
            base, examples, SupervisedSettings(**{**_fields(settings), "seed": 4}), tmp_path / "killed", lora=None
        )


def _fields(settings: SupervisedSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_a_kill_before_the_policy_is_saved_repeats_no_step(
    base: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise Killed

    examples, settings = [example(tokenizer, RIGHT)], SupervisedSettings(epochs=3, learning_rate=1e-2)
    with monkeypatch.context() as patch:
        patch.setattr("fate_gym.trainers.algorithms._transformers.save_policy", killed)
        with pytest.raises(Killed):
            learn_examples(base, examples, settings, tmp_path / "killed", lora=LORA)
    seen: list[dict[str, Any]] = []
    numbers = learn_examples(base, examples, settings, tmp_path / "killed", lora=LORA, on_step=seen.append)
    assert seen == []
    assert numbers["steps"] == 3
    learn_examples(base, examples, settings, tmp_path / "whole", lora=LORA)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_loss_that_is_no_number_stops_the_training(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    settings = SupervisedSettings(epochs=4, learning_rate=1e30, warmup=0.0)
    with pytest.raises(FateGymError, match=r"the (loss|grad_norm) of step \d is (nan|inf): lower the learning rate"):
        learn_examples(base, [example(tokenizer, RIGHT)], settings, tmp_path, lora=None)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_tokens": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"save_every": 0}]
)
def test_settings_need_sensible_numbers(wrong: dict[str, Any]) -> None:
    for kind in (SupervisedSettings, DPOSettings):
        with pytest.raises(ValueError, match="must be"):
            kind(**wrong)
    with pytest.raises(ValueError, match="beta must be positive"):
        DPOSettings(beta=0.0)


def test_nothing_to_learn_from_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        learn_examples(base, [], SupervisedSettings(), tmp_path / "out", lora=None)
    with pytest.raises(ValueError, match="no pairs"):
        dpo(base, [], DPOSettings(), tmp_path / "out", lora=None)
    assert not (tmp_path / "out").exists()


def test_a_policy_without_tools_learns_with_the_chat_template_that_is_named(tmp_path: Path) -> None:
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    toolless = tiny_model.make_tiny_model(tmp_path / "toolless", chat_template=chatml)
    known = Example([1, 2], [3, 4], [1, 1])
    with pytest.raises(UsageError, match="takes no tools; chat_template="):
        learn_examples(str(toolless), [known], SupervisedSettings(), tmp_path / "none", lora=None)
    once = {"lora": None, "chat_template": "hermes"}
    learn_examples(str(toolless), [known], SupervisedSettings(epochs=1), tmp_path / "supervised", **once)
    pair = Pair(known, Example([1, 2], [5], [1]))
    dpo(str(tmp_path / "supervised"), [pair], DPOSettings(epochs=1), tmp_path / "dpo", lora=None)
    assert load_tokenizer(str(tmp_path / "dpo")).chat_template == read_chat_template("hermes")


# DPO.


def margin(policy: Path, pair: Pair) -> float:
    """How much likelier a policy makes what was chosen than what was rejected."""
    model, _ = load_policy(policy, lora=None)
    with torch.no_grad():
        chosen, rejected = log_probs(model.eval(), collate([pair.chosen, pair.rejected])).sum(-1)
    return float(chosen - rejected)


@pytest.mark.parametrize("lora", [LORA, None])
def test_dpo_prefers_what_was_chosen(base: Path, tokenizer: Any, tmp_path: Path, lora: LoraSettings | None) -> None:
    pairs = [
        Pair(example(tokenizer, RIGHT), example(tokenizer, WRONG)),
        Pair(example(tokenizer, RIGHT, DONE), example(tokenizer, WRONG, DONE)),
    ]
    settings = DPOSettings(epochs=8, learning_rate=3e-2 if lora else 5e-3, beta=0.5)
    numbers = dpo(base, pairs, settings, tmp_path, lora=lora)
    # Where it begins, the policy is its own reference.
    assert numbers["losses"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert numbers["loss"] < 0.5 * numbers["losses"][0]
    assert numbers["pairs"] == 2
    for pair in pairs:
        before, after = (margin(policy, pair) for policy in (base, tmp_path))
        assert after > before + 1
    assert dpo(base, pairs, settings, tmp_path, lora=lora) == numbers
    with pytest.raises(RunMismatchError, match="  pairs: stored"):
        dpo(base, pairs[:1], settings, tmp_path, lora=lora)


def test_trackers_are_those_of_transformers(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="abacus is not supported"):
        learn_examples(
            str(base), [example(tokenizer, RIGHT)], SupervisedSettings(report_to=("abacus",)), tmp_path, lora=None
        )
