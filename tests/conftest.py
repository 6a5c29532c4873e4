"""What all tests share: the toy benchmark, registered as a third party would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "servers")]

import shop_plugin  # noqa: E402, F401 (registers the toy benchmark)

# CI draws the same examples each time, so that a red run can be run again; at home each run draws new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def _no_keys() -> None:
    """No test may use a real key by accident."""
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        del os.environ[name]
