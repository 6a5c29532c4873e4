"""What all tests share: the toy benchmark, registered as a third party would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "servers")]

import shop_plugin  # noqa: E402, F401 (registers the toy benchmark)


@pytest.fixture(scope="session", autouse=True)
def _no_keys() -> None:
    """No test may use a real key by accident."""
    import os

    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        del os.environ[name]
