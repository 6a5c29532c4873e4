"""`fate-gym` in sharded processes on a CPU: FAILS ARGUMENTS. FAILS is the process that fails in PFPO, or "none"."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import depot  # noqa: F401 (registers the environment)
import sharded_training

from fate_gym.cli.main import run_program
from fate_gym.errors import FateGymError
from fate_gym.trainers.algorithms.groups import GroupSampler


def fail() -> None:
    """Fails when the second step is to be sampled."""
    draw = GroupSampler.draw

    async def failing(self: GroupSampler, agent: Any, tasks: Any, step: int, first_slot: int) -> Any:
        if step == 1:
            raise FateGymError("no power today")
        return await draw(self, agent, tasks, step, first_slot)

    GroupSampler.draw = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    fails = sys.argv.pop(1)
    sharded_training.shard_on_a_cpu()
    if fails == os.environ.get("RANK"):
        fail()
    sys.exit(run_program())
