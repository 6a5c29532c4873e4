"""Several processes train as one does: the same samples, the same advantages, and none waits for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import shop_policy

SCRIPT = Path(shop_policy.__file__).with_name("several_processes.py")


def train(policy: Path, out: Path, processes: int, late: float = 0.0) -> list[dict[str, Any]]:
    """Runs the script, and returns the records of its steps."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(policy), str(out), str(late)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def advantages(out: Path, processes: int) -> list[list[float]]:
    """Advantages of each batch, those of all processes in a row."""
    by_process = [json.loads((out / f"advantages-{rank}.json").read_text()) for rank in range(processes)]
    return [[value for part in batch for value in part] for batch in zip(*by_process, strict=True)]


@pytest.mark.slow
def test_two_processes_give_the_advantages_of_one_and_wait_for_each_other(tmp_path: Path) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy")
    alone = train(policy, tmp_path / "one", 1)
    # The second process comes five seconds late to every batch, and its groups refill as often as they need.
    together = train(policy, tmp_path / "two", 2, late=5.0)
    one, two = advantages(tmp_path / "one", 1), advantages(tmp_path / "two", 2)
    assert one[0] == two[0]
    assert len(one[0]) == 16
    assert max(map(abs, one[0])) > 0.1
    assert [len(batch) for batch in two] == [16, 16]
    for name in ("vector", "rollouts", "tokens", "refilled", "signal", "unscored"):
        assert alone[0][name] == together[0][name]
    assert together[0]["refilled"] > 0
    assert alone[0]["loss"] == pytest.approx(together[0]["loss"], abs=1e-6)
    assert alone[0]["grad_norm"] == pytest.approx(together[0]["grad_norm"], rel=1e-4)
    assert (tmp_path / "two" / "numbers.json").exists()
    shares = [
        shop_policy.share_of(tmp_path / name, "<tool_call>", shop_policy.WRONG) for name in ("policy", "one", "two")
    ]
    assert shares[1] == pytest.approx(shares[2], abs=1e-3)
    assert shares[1] != pytest.approx(shares[0], abs=1e-2)
