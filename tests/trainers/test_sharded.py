"""Training with sharded weights, in two processes, as the shipped configurations of accelerate have it."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import shop_policy
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from launching import launch
from safetensors.torch import load_file

from fate_gym.errors import RunError
from fate_gym.trainers.algorithms.supervised import Share, shares
from fate_gym.trainers.algorithms.update_folder import UpdateFolder

SUPPORT = Path(shop_policy.__file__).parent
CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def launch_arguments(name: str) -> argparse.Namespace:
    """What `accelerate launch --config_file` makes of a configuration."""
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--main_process_port", "0", "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(given))[0]


def sharding() -> Mapping[str, str]:
    """What `accelerate launch` tells its processes of sharding. A CPU trains these weights in float32."""
    shipped = prepare_multi_gpu_env(launch_arguments("fsdp2"))
    return {name: value for name, value in shipped.items() if "FSDP" in name}


def run(policy: Path, out: Path, processes: int, *dies: str) -> subprocess.CompletedProcess[str]:
    """Runs both updates in so many sharded processes, or without a launcher if 0."""
    environment = sharding() if processes else {}
    return launch(SUPPORT / "sharded_training.py", policy, out, *dies, processes=processes, environment=environment)


def weights(folder: Path) -> torch.Tensor:
    """All weights of a policy in a row."""
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


def steps(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_with_sharded_weights_do_what_one_does_and_resume(tmp_path: Path) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(policy, one, 0)
    assert alone.returncode == 0, alone.stderr[-3000:]
    killed = run(policy, two, 2, "2")
    assert killed.returncode != 0
    assert (two / "warmup" / "numbers.json").exists()
    assert len(steps(two / "pfpo")) == 2
    # Each process held about half of the weights, until it sampled.
    for rank in range(2):
        held, whole = json.loads((two / f"held-{rank}.json").read_text())
        assert 0.4 < held / whole < 0.6
    # Resumed with another number of processes: its shard is the whole.
    together = run(policy, two, 1)
    assert together.returncode == 0, together.stderr[-3000:]
    for update in ("warmup", "pfpo"):
        here, there = steps(one / update), steps(two / update)
        assert len(here) == len(there) == 2
        for a, b in zip(here, there, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
            assert {name: a.get(name) for name in ("vector", "tokens", "refilled")} == {
                name: b.get(name) for name in ("vector", "tokens", "refilled")
            }
        learned = weights(one / update) - weights(policy)
        assert learned.norm() > 1e-3
        assert (weights(two / update) - weights(one / update)).norm() < 0.01 * learned.norm()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_tiny_case_made_small_learns_to_resist_also_where_a_process_failed(tmp_path: Path) -> None:
    def train(fails: str) -> subprocess.CompletedProcess[str]:
        command = ["train", "--config", "fate-tiny-ci", "--out", str(tmp_path), "--json"]
        script = SUPPORT / "whole_training.py"
        return launch(script, fails, *command, processes=2, environment=sharding())

    failed = train("1")
    assert failed.returncode != 0
    # The other one either says so too, or that the launcher ended it.
    assert "fate-gym: no power today" in failed.stderr.splitlines()
    assert "RuntimeError" not in failed.stderr
    done = train("none")
    # 1 would be the gate's: a base policy that cannot do its tasks is a failure of the cloning, not of this machine.
    assert done.returncode == 0, done.stderr[-3000:]
    # One process alone prints.
    summary = json.loads(done.stdout)
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


def test_a_batch_is_divided_so_that_every_process_takes_part() -> None:
    assert shares([5, 6, 7], 2) == [Share([5, 7]), Share([6])]
    assert shares([5], 2) == [Share([5]), Share([5], counts=False)]
    assert shares([5, 6, 7], 1) == [Share([5, 6, 7])]


def test_accelerate_reads_the_shipped_configurations() -> None:
    fsdp = launch_arguments("fsdp2")
    assert fsdp.use_fsdp
    environment = prepare_multi_gpu_env(fsdp)
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    zero = launch_arguments("zero3")
    assert zero.use_deepspeed
    zero.deepspeed_fields_from_accelerate_config = []
    environment = prepare_deepspeed_cmd_env(zero)[1]
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
