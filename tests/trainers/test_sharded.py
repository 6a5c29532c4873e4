"""Training with sharded weights, in two processes, as the shipped configurations of accelerate have it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import sharded_runs
import torch

from fate_gym.errors import RunError, UsageError
from fate_gym.trainers.algorithms.supervised import Share, shares
from fate_gym.trainers.algorithms.update_folder import UpdateFolder


@pytest.mark.slow
def test_two_processes_with_sharded_weights_do_what_one_does_and_resume(tmp_path: Path) -> None:
    # Resumed with another number of processes: its shard is the whole.
    sharded_runs.check_updates(tmp_path, sharded_runs.fsdp2(), resumed=1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_tiny_case_made_small_learns_to_resist_also_where_a_process_failed(tmp_path: Path) -> None:
    summary = sharded_runs.train_where_one_fails("fate-tiny-ci", tmp_path, sharded_runs.fsdp2())
    before, after = summary["before"], summary["after"]
    assert after["ASR"]["value"] <= before["ASR"]["value"] / 2
    assert after["earned_utility"]["value"] >= before["earned_utility"]["value"] - 0.25
    assert after["reached"]["value"] >= 0.7
    assert summary["rounds"][1]["selected"]["chosen"] > 0


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "under FSDP, and this start has no sharding"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "under no sharding, and this start has FSDP"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "8"},
            {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "4"},
            "under DeepSpeed in 8 processes, and this start has DeepSpeed in 4 processes",
        ),
    ],
)
def test_a_checkpoint_that_another_launcher_wrote_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, str], now: dict[str, str], says: str
) -> None:
    folder = UpdateFolder(tmp_path, {})
    (folder.checkpoints / "checkpoint-1").mkdir(parents=True)
    with monkeypatch.context() as patch:
        for name, value in then.items():
            patch.setenv(name, value)
        folder.mark_checkpoint(1)
        patch.setenv("WORLD_SIZE", then.get("WORLD_SIZE", "3"))
        assert UpdateFolder(tmp_path, {}).step == 1
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=f"{says}: use the launcher"):
        UpdateFolder(tmp_path, {})


def test_all_weights_are_not_learned_where_deepspeed_would_round_them(tmp_path: Path) -> None:
    from fate_gym.trainers.algorithms._transformers import train_to_end

    trainer = SimpleNamespace(is_deepspeed_enabled=True, args=SimpleNamespace(bf16=True), model=torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"DeepSpeed rounds .* launch with fsdp2\.yaml"):
        train_to_end(trainer, UpdateFolder(tmp_path, {}), None)


def test_a_batch_is_divided_so_that_every_process_takes_part() -> None:
    assert shares([5, 6, 7], 2) == [Share([5, 7]), Share([6])]
    assert shares([5], 2) == [Share([5]), Share([5], counts=False)]
    assert shares([5, 6, 7], 1) == [Share([5, 6, 7])]


def test_accelerate_reads_the_shipped_configurations() -> None:
    environment = sharded_runs.fsdp2()
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    environment = sharded_runs.zero3()
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
