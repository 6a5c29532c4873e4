"""What tests of trainers share."""

from __future__ import annotations

import contextlib
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


class Always:
    """Samples with an agent of a test's own, whatever the policy."""

    is_exact = True
    overlaps = False

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def agent(self, policy: str, **options: Any) -> Agent:
        return self._agent

    def learner(self, trainer: Any, policy: str, **options: Any) -> contextlib.AbstractContextManager[Agent]:
        return contextlib.nullcontext(self._agent)


@pytest.fixture
def make_round(tmp_path: Path) -> Callable[..., Round]:
    """Makes a round over the toy depot, whose policy is any agent of a test's own."""

    def make(agent: Agent, **changes: Any) -> Round:
        settings = {"policy": agent.name, "train": (TaskSet("toy/Depot-v0"),), "concurrency": 4, **changes}
        folder = TrainingFolder(TrainConfig(**settings), tmp_path / "training")
        return Round(folder, 1, sampler=Always(agent))

    return make
