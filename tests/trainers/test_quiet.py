"""Who trains sees no warning of a library, since there is nothing that they could do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fate_gym.cli.training import _Bars

START = Path(__file__).parents[2] / "fate_gym_start.py"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fate", "dpo"])
def test_a_training_prints_no_warning_of_a_library(method: str, tmp_path: Path) -> None:
    command = [sys.executable, START, "train", "--config", "fate-tiny", "--out", tmp_path / "out", "--dry-run"]
    # Libraries read these before they warn; a developer's settings must not hide what a user sees.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "COLUMNS")}
    done = subprocess.run([*command, f"method={method}"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Rehearsed on a tiny random model" in done.stderr
    assert "warning" not in done.stderr.lower()
    assert "deprecated" not in done.stderr.lower()


def test_what_a_library_prints_does_not_stand_before_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with _Bars():
        print("[WARNING] of a library")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "[WARNING] of a library" in printed.err
