from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FATE_GYM_AGENTHARM_DIR", raising=False)


@pytest.fixture(scope="session")
def real_folder() -> str:
    """The folder with AgentHarm's own validation files; where it is named it must be there."""
    named = os.environ.get("FATE_GYM_AGENTHARM_DIR")
    if not named:
        pytest.skip("FATE_GYM_AGENTHARM_DIR names no folder with AgentHarm's validation files")
    assert (Path(named) / "harmful_behaviors_validation.json").is_file(), f"{named} lacks AgentHarm's files"
    return named
