"""Policies as weights: what is saved plays as what was trained, merged or with its adapter."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch

from fate_gym.agents.local import LocalAgent
from fate_gym.agents.response_templates import PROBE_TOOL
from fate_gym.episode import Sample
from fate_gym.errors import DiskError, UsageError
from fate_gym.storage import native_disk_errors
from fate_gym.task import Task
from fate_gym.trainers.policy import ADAPTER, LoraSettings, load_policy, lora_config, save_policy, with_adapters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def greedy(agent: LocalAgent) -> list[Sample]:
    """Samples of some prompts; the agent is closed."""

    async def main() -> list[Sample]:
        try:
            replies = [
                await agent.start(Task("t", "benign", suite="s", cluster="c"), 0).act(
                    {"messages": [{"role": "user", "content": text}], "tools": [PROBE_TOOL]}
                )
                for text in ("Hello.", "Send 7 to 7.", "What now?")
            ]
        finally:
            await agent.aclose()
        return [reply.sample for reply in replies if reply.sample]

    samples = asyncio.run(main())
    assert len(samples) == 3
    return samples


def assert_same(first: list[Sample], second: list[Sample]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def with_adapter(base: Path) -> tuple[Any, Any]:
    """A model whose adapter does something, as if it had learned."""
    import peft

    model, tokenizer = load_policy(base, lora=LoraSettings())
    model = peft.get_peft_model(model, lora_config(LoraSettings(rank=4, alpha=8), model))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.1 * torch.randn(weight.shape, generator=noise)
    return model, tokenizer


def test_an_agent_over_a_model_in_memory_is_the_agent_of_its_folder(base: Path) -> None:
    model, tokenizer = load_policy(base, lora=None)
    agent = LocalAgent.over(model.train(), tokenizer, name="mine", max_new_tokens=12)
    assert agent.name == "hf:mine"
    asyncio.run(agent.check())
    assert not model.training
    expected = greedy(LocalAgent(str(base), max_new_tokens=12))
    # Guesses that came true in one are read in other batches by the other: equal tokens, numbers within rounding.
    assert_same(greedy(agent), expected)
    assert_same(greedy(agent), expected)  # The model is still there after `aclose`.
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert [one.token_ids for one in greedy(agent)] != [one.token_ids for one in expected]


def test_merged_and_adapter_checkpoints_play_to_the_same_numbers(base: Path, tmp_path: Path) -> None:
    model, tokenizer = with_adapter(base)
    learned = greedy(LocalAgent.over(model, tokenizer, max_new_tokens=12))
    save_policy(model, tokenizer, tmp_path)
    assert_same(greedy(LocalAgent(str(tmp_path), max_new_tokens=12)), learned)
    assert_same(greedy(LocalAgent(str(base), adapter=str(tmp_path / ADAPTER), max_new_tokens=12)), learned)
    assert greedy(LocalAgent(str(base), max_new_tokens=12)) != learned
    again, _ = load_policy(tmp_path, lora=None)
    assert not any("lora" in name for name, _ in again.named_parameters())


def test_adapters_lie_on_the_last_layers_alone_and_frozen_weights_have_the_type_that_is_asked_for(base: Path) -> None:
    settings = LoraSettings(rank=4, last_layers=1, dtype="bfloat16")
    model, _ = load_policy(base, lora=settings)
    model = with_adapters(model, settings, seed=0)
    learned = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert learned
    assert all(".layers.1." in name for name in learned), "the model has two layers"
    assert set(learned.values()) == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
    with pytest.raises(ValueError, match="last_layers must be at least 1"):
        LoraSettings(last_layers=0)


def test_settings_of_adapters_that_are_not_given_change_no_folder_that_existed_before_them() -> None:
    assert LoraSettings().to_json() == {"rank": 16, "alpha": 32, "dropout": 0.0}


def test_whole_weights_are_saved_exactly(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(base, lora=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    save_policy(model, tokenizer, tmp_path)
    assert not (tmp_path / ADAPTER).exists()
    again, _ = load_policy(tmp_path, lora=None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.dtype == torch.float32


def test_what_cannot_be_loaded_is_one_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"policy .*nothing"):
        load_policy(tmp_path / "nothing", lora=LoraSettings())
    model, tokenizer = load_policy(base, lora=None)
    tokenizer.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="safetensors") as caught:
        load_policy(tmp_path, lora=LoraSettings())
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"pip install 'fate-gym\[train\]'"):
        load_policy(base, lora=LoraSettings())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_adapters_need_sensible_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        LoraSettings(**wrong)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Refuses files of more than a few bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Without the signal, a write fails instead of ending the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_weights_for_which_the_disk_has_no_room_are_one_clear_line(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(base, lora=None)
    with pytest.raises(DiskError, match=r"out could not be written; the disk may be full \(.*os error") as caught:
        save_policy(model, tokenizer, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small_files")
def test_a_tensor_for_which_the_disk_has_no_room_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises((DiskError, OSError)) as caught, native_disk_errors(tmp_path):
        torch.save({"moments": torch.zeros(10_000)}, tmp_path / "optimizer.pt")
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_library_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), native_disk_errors(tmp_path):
        raise KeyError("weights")


def test_a_policy_is_read_whole_after_a_trainer_has_begun_under_deepspeed(base: Path) -> None:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config

    class Zero3:
        """What accelerate leaves behind, which then lives as long as the process."""

        def is_zero3(self) -> bool:
            return True

    left = Zero3()
    set_hf_deepspeed_config(left)
    assert is_deepspeed_zero3_enabled()
    load_policy(base, lora=None)
