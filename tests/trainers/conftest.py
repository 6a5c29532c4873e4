"""What tests of trainers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import depot  # noqa: F401 (registers the environment)
import pytest

from fate_gym.agents import Agent
from fate_gym.evaluation.plan import TaskSet
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.round import Round


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are faster on one thread, and test processes run side by side."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_round(tmp_path: Path) -> Callable[..., Round]:
    """Makes a round over the toy depot, whose policy is any agent of a test's own."""

    def make(agent: Agent, **changes: Any) -> Round:
        settings = {"policy": agent.name, "train": (TaskSet("toy/Depot-v0"),), "concurrency": 4, **changes}
        folder = TrainingFolder(TrainConfig(**settings), tmp_path / "training")
        return Round(folder, 1, make_agent=lambda policy, seed, config: agent)

    return make
