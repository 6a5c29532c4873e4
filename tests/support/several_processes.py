"""A PFPO training that notes its advantages, for tests that start it with torchrun: POLICY OUT SECONDS_LATE."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import shop_plugin  # noqa: F401 (registers the toy benchmark)
import shop_policy
import torch

from fate_gym.trainers.algorithms.groups import GroupSampler
from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.algorithms.trl_trainer import PFPOTrainer

RANK = int(os.environ.get("RANK", "0"))
SETTINGS = PFPOSettings(steps=2, groups=8, group_size=2, refills=2, learning_rate=1e-3, micro_batch=4)


def note_advantages(out: Path) -> None:
    """Has the trainer write each batch's advantages of this process."""
    score = PFPOTrainer._generate_and_score_completions
    found: list[list[float]] = []

    def noting(self: Any, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = score(self, inputs)
        found.append(batch["advantages"].tolist())
        out.joinpath(f"advantages-{RANK}.json").write_text(json.dumps(found))
        return batch

    PFPOTrainer._generate_and_score_completions = noting


def be_late(seconds: float) -> None:
    """Holds up the sampling of all processes but the first."""
    draw = GroupSampler.draw

    def late(self: GroupSampler, *args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds * RANK)
        return draw(self, *args, **kwargs)

    GroupSampler.draw = late  # type: ignore[method-assign]


if __name__ == "__main__":
    policy, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    out.mkdir(exist_ok=True)
    note_advantages(out)
    be_late(seconds)
    plan = shop_policy.shop()
    optimise_policy(policy, plan, plan.items, SETTINGS, out, lora=None, agent_options={"max_new_tokens": 8})
