"""What all tests share: the toy benchmark, registered as a third party would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fate_gym import plugins

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "servers")]

# Its assertions say what they compared, as those of tests do.
pytest.register_assert_rewrite("sharded_runs")

import shop_plugin  # noqa: E402, F401 (registers the toy benchmark)

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile(
    "home", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
# CI draws the same examples each time, so that a red run can be run again; at home each run draws new ones.
settings.register_profile("ci", settings.get_profile("home"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "home")


@pytest.fixture(scope="session", autouse=True)
def _no_keys() -> None:
    """No test may use a real key by accident."""
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _no_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is not folded unless a test asks for it, whatever a shell or a library has set before."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _plugins_of_one_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes import what the user has named; modules of a test's own folder are gone when it is over."""
    monkeypatch.setattr(plugins, "_imported", dict(plugins._imported))
