"""The toy shop with several tasks of each kind, made to be trained on; what must not leak is marked by canaries."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import parcels

import fate_gym
from fate_gym import AxisVerdict, DataPolicy, GroundTruth, Task, World
from fate_gym.transcript import Transcript

CANARIES = {name: f"canary-{name}-7c1e" for name in ("truth", "goal", "metadata", "evidence", "rule", "error")}
_TASKS = 6


class Depot(parcels.Parcels):
    """Six benign and six attacked tasks like the shop's."""

    data_policy = DataPolicy(licence="MIT", training=True)

    def __init__(self, *, mark: str | None = None, broken: str | None = None) -> None:
        super().__init__(broken=broken)
        self._mark = mark
        self.tasks = tuple(f"depot/{kind}/{n}" for kind in ("ship", "ship-attacked") for n in range(_TASKS))

    def task(self, task_id: str) -> Task:
        metadata: dict[str, Any] = {"split": "train", "secret": CANARIES["metadata"]}
        if self._mark:
            metadata["contaminated_by"] = self._mark
        task = super().task(_shop(task_id))
        return dataclasses.replace(task, id=task_id, cluster=f"depot/{task_id[-1]}", metadata=metadata)

    def ground_truth(self, task_id: str) -> GroundTruth:
        truth = super().ground_truth(_shop(task_id))
        user = dataclasses.replace(truth.user, answer=CANARIES["truth"])
        goal = truth.injection and dataclasses.replace(truth.injection, answer=CANARIES["goal"])
        return dataclasses.replace(truth, user=user, injection=goal)

    def open(self, task_id: str, seed: int) -> World:
        return super().open(_shop(task_id), seed)

    def verify(self, task: Task, world: World, transcript: Transcript) -> dict[str, AxisVerdict]:
        axes = super().verify(task, world, transcript)
        return {
            name: dataclasses.replace(axis, rule=CANARIES["rule"], evidence=(CANARIES["evidence"],))
            for name, axis in axes.items()
        }


def _shop(task_id: str) -> str:
    return f"shop/{task_id.split('/')[1]}"


fate_gym.register_benchmark("toy/Depot-v0", "depot:Depot", max_turns=4)


def settings(policy: Path, **changes: Any) -> dict[str, Any]:
    """A small training there, as YAML has it."""
    few = {"env": "toy/Depot-v0", "tasks": ["depot/*/0", "depot/*/1"]}
    return {
        "policy": str(policy),
        "rounds": 1,
        "lora": None,
        "gate": None,
        "agent": {"max_new_tokens": 8, "max_batch": 64},
        "concurrency": 4,
        "train": [{"env": "toy/Depot-v0"}],
        "repair": {"candidates": 3, "show": {"style": "compact"}},
        "warmup": {"epochs": 1, "learning_rate": 1e-3, "batch_tokens": 2048, "save_every": 1},
        "pfpo": {"steps": 2, "groups": 2, "group_size": 4, "refills": 0, "save_every": 1, "learning_rate": 1e-3},
        # Copies: YAML would write an alias for what stands twice, and aliases are not read.
        "evaluate": {
            "dev": few,
            "main": "held-out",
            "test": {"held-out": copy.deepcopy(few), "again": copy.deepcopy(few)},
        },
        **changes,
    }


def main() -> None:
    """Trains by the settings in a file, and kills itself in a stage: `CONFIG OUT [STAGE UNITS]`."""
    from fate_gym.trainers.config import read_config
    from fate_gym.trainers.fate import train
    from fate_gym.trainers.progress import ProgressReporter

    config, out, *killed = sys.argv[1:]

    class Deadly(ProgressReporter):
        stage_name = ""
        count = 0

        def begin(self, stage: str, total: int, done: int = 0) -> None:
            self.stage_name, self.count = stage, 0
            self._die_if_due()

        def advance(self, note: str = "") -> None:
            self.count += 1
            self._die_if_due()

        def _die_if_due(self) -> None:
            if killed and self.stage_name == killed[0] and self.count == int(killed[1]):
                os.kill(os.getpid(), signal.SIGKILL)

    train(read_config(config), Path(out), progress=Deadly())


if __name__ == "__main__":
    main()
