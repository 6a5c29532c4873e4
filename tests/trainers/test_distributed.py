"""Several processes train as one does: the same samples, the same advantages, and none waits for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shop_policy
from launching import launch

SUPPORT = Path(shop_policy.__file__).parent


def train(policy: Path, out: Path, processes: int, late: float = 0.0) -> list[dict[str, Any]]:
    """Runs the script, and returns the records of its steps."""
    done = launch(SUPPORT / "several_processes.py", policy, out, late, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def advantages(out: Path, processes: int) -> list[list[float]]:
    """Advantages of each batch, those of all processes in a row."""
    by_process = [json.loads((out / f"advantages-{rank}.json").read_text()) for rank in range(processes)]
    return [[value for part in batch for value in part] for batch in zip(*by_process, strict=True)]


@pytest.mark.slow
def test_two_processes_give_the_advantages_of_one_and_wait_for_each_other(tmp_path: Path) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy")
    alone = train(policy, tmp_path / "one", 0)
    # The second process comes a second late to every batch, and its groups refill as often as they need.
    together = train(policy, tmp_path / "two", 2, late=1.0)
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


@pytest.mark.slow
def test_processes_wait_for_the_first_and_hear_why_another_failed(tmp_path: Path) -> None:
    done = launch(SUPPORT / "meeting.py", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["heard"] for one in told] == ["by the first"] * 2
    # The file was there when the other process came.
    assert [one["found"] for one in told] == [False, True]
    assert told[1]["error"] == ["ValueError", "wrong in\nthis process"]
    assert told[0]["error"] == ["FateGymError", "process 1 failed: wrong in this process"]
