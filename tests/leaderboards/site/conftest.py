"""Sites that the tests of pages share."""

from __future__ import annotations

from pathlib import Path

import made_runs
import pytest


@pytest.fixture(scope="session")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return made_runs.build([made_runs.hostile_run(folder / "run")], folder / "site")


@pytest.fixture(scope="session")
def dojo_site(dojo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a real run."""
    return made_runs.build([dojo_run], tmp_path_factory.mktemp("dojo") / "site")
