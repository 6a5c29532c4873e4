"""Small real runs that the tests of leaderboards share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_runs
from small_runs import DOJO, MakeRun


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    return small_runs.make_run


@pytest.fixture(scope="session")
def dojo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of AgentDojo on a small split: with and without attack, no limit."""
    return small_runs.make_run(tmp_path_factory.mktemp("runs") / "gullible", "gullible", **DOJO)


@pytest.fixture
def copied(dojo_run: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(dojo_run, tmp_path / "copy"))
