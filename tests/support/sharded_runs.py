"""Trainings in sharded processes, with the settings of accelerate's shipped configurations, and what they must give."""

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

SUPPORT = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def _launch_arguments(name: str) -> argparse.Namespace:
    """What `accelerate launch --config_file` makes of a configuration."""
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--main_process_port", "0", "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(given))[0]


def fsdp2() -> Mapping[str, str]:
    """What `accelerate launch` tells its processes of FSDP2. A CPU trains these weights in float32."""
    arguments = _launch_arguments("fsdp2")
    assert arguments.use_fsdp
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if "FSDP" in name}


def zero3() -> Mapping[str, str]:
    """What `accelerate launch` tells its processes of ZeRO-3. A CPU trains these weights in float32."""
    arguments = _launch_arguments("zero3")
    assert arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = []
    shipped = prepare_deepspeed_cmd_env(arguments)[1]
    return {"DS_ACCELERATOR": "cpu", **{name: value for name, value in shipped.items() if "DEEPSPEED" in name}}


def run_updates(
    policy: Path, out: Path, processes: int, sharding: Mapping[str, str], *dies: int
) -> subprocess.CompletedProcess[str]:
    """Runs a warm-up and PFPO in so many sharded processes, or without a launcher if 0."""
    environment = sharding if processes else {}
    return launch(SUPPORT / "sharded_training.py", policy, out, *dies, processes=processes, environment=environment)


def steps(out: Path) -> list[dict[str, Any]]:
    """The records of an update's steps."""
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def check_updates(folder: Path, sharding: Mapping[str, str], *, resumed: int) -> None:
    """Checks that two processes that are killed, and started again as so many, learn what one process does."""
    policy = shop_policy.make_shop_policy(folder / "policy")
    one, two = folder / "one", folder / "two"
    alone = run_updates(policy, one, 0, sharding)
    assert alone.returncode == 0, alone.stderr[-3000:]
    killed = run_updates(policy, two, 2, sharding, 2)
    assert killed.returncode != 0
    assert (two / "warmup" / "numbers.json").exists()
    assert len(steps(two / "pfpo")) == 2
    # Each process held about half of the weights, until it sampled.
    for rank in range(2):
        held, whole = json.loads((two / f"held-{rank}.json").read_text())
        assert 0.4 < held / whole < 0.6
    together = run_updates(policy, two, resumed, sharding)
    assert together.returncode == 0, together.stderr[-3000:]
    for update in ("warmup", "pfpo"):
        assert len(steps(one / update)) == 2
        check_same_update(policy, one / update, two / update)


def check_same_update(policy: Path, one: Path, two: Path) -> None:
    """Checks that two runs of an update sampled the same, and changed the weights of a policy alike within rounding."""
    for a, b in zip(steps(one), steps(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert {name: a.get(name) for name in ("vector", "tokens", "refilled")} == {
            name: b.get(name) for name in ("vector", "tokens", "refilled")
        }
    learned = _weights(one) - _weights(policy)
    assert learned.norm() > 1e-3
    assert (_weights(two) - _weights(one)).norm() < 0.01 * learned.norm()


def _weights(folder: Path) -> torch.Tensor:
    """All weights of a policy in a row."""
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


def train(
    config: Path | str, out: Path, processes: int, sharding: Mapping[str, str], *, fails: str = "none"
) -> subprocess.CompletedProcess[str]:
    """Runs `fate-gym train` in so many sharded processes, or without a launcher if 0; one may fail in PFPO."""
    command = ["train", "--config", str(config), "--out", str(out), "--json"]
    environment = sharding if processes else {}
    return launch(SUPPORT / "whole_training.py", fails, *command, processes=processes, environment=environment)


def train_where_one_fails(config: Path | str, out: Path, sharding: Mapping[str, str]) -> dict[str, Any]:
    """Starts a training in two processes, of which one fails in PFPO, starts it again, and returns its summary."""
    failed = train(config, out, 2, sharding, fails="1")
    assert failed.returncode != 0
    # The other one either says so too, or that the launcher ended it.
    assert "fate-gym: no power today" in failed.stderr.splitlines()
    assert "RuntimeError" not in failed.stderr
    done = train(config, out, 2, sharding)
    # 1 would be the gate's: a base policy that cannot do its tasks is a failure of the cloning, not of this machine.
    assert done.returncode == 0, done.stderr[-3000:]
    # One process alone prints.
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
