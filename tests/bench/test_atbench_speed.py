"""Speed of ATBench at its real size, as ratios against reading its JSON; times are printed, never asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import trajectories
from test_speed import in_turns

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("view", ["full", "paged"])
def test_a_thousand_rows_open_about_as_fast_as_their_json_and_reset_at_once(tmp_path: Path, view: str) -> None:
    folder = trajectories.write(tmp_path, trajectories.many(1000, 16_800))
    path = folder / "ATBench" / "test.json"
    size = path.stat().st_size / 1e6
    assert 17 < size < 20

    def make() -> Any:
        return gym.make("fate/ATBench-v0", data_dir=folder, view=view).unwrapped

    env = make()
    task_id = env.tasks[500]

    def reset() -> None:
        env.reset(seed=0, options={"task_id": task_id})

    parse, opened, started = in_turns((lambda: json.loads(path.read_bytes()), 1), (make, 1), (reset, 50), rounds=5)
    print(
        f"\n{size:.1f} MB, {view}: JSON {1e3 * parse:.0f} ms, open {1e3 * opened:.0f} ms ({opened / parse:.1f}x), ",
        end="",
    )
    print(f"reset {1e6 * started:.0f} us ({parse / started:.0f}x faster than the JSON)")
    assert opened < 10 * parse
    assert started < parse / 100
