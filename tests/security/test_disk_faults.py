"""Whatever the disk does at whatever call, a run goes on: every episode once, nothing lost, and `verify` agrees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import crashes
import disk_faults
import pytest

from fate_gym.storage import sync_tree
from fate_gym.storage._atomic import sync_folder


def campaign(what: str, most: int) -> dict[str, Any]:
    """Runs a campaign in a process without threads, from which it forks."""
    done = subprocess.run(
        [sys.executable, crashes.__file__, what, str(most)], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["problems"] == []
    assert done.returncode == 0
    return report


def assert_faults_struck(report: dict[str, Any]) -> None:
    """A campaign whose faults do nothing would prove nothing."""
    ended = report["ended"]
    assert {"kill: killed", "power: killed", "full: error", "io: error", "short: done"} <= set(ended)
    assert not [name for name in ended if name.endswith("bug")]


def test_an_evaluation_survives_some_faults() -> None:
    report = campaign("evaluation", 60)  # Each point once, and some of them twice.
    assert_faults_struck(report)
    assert report["visits"] == 60
    assert report["points_visited"] == report["points"]


@pytest.mark.slow
def test_an_evaluation_survives_every_fault_at_every_call() -> None:
    report = campaign("evaluation", 10_000)
    assert_faults_struck(report)
    assert report["visits"] + report["visits_with_two_faults"] >= 200
    assert set(report["calls"]) >= {"open", "write", "fsync", "rename", "mkdir"}


@pytest.mark.slow
def test_a_training_survives_some_faults() -> None:
    report = campaign("training", 12)
    assert report["visits"] == report["points_visited"] == 12
    assert sum(report["ended"].values()) > 12
    assert not [name for name in report["ended"] if name.endswith("bug")]


def write_without_fsync(root: Path) -> None:
    root.mkdir()
    (root / "file").write_text("x" * 10)
    (root / "second").write_text("x")


def write_with_fsync(root: Path) -> None:
    root.mkdir()
    with (root / "file").open("w") as file:
        file.write("x" * 10)
        file.flush()
        os.fsync(file.fileno())
    for folder in (root, root.parent):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
    (root / "second").write_text("x")


def write_and_sync_by_another_file(root: Path) -> None:
    root.mkdir()
    (root / "file").write_text("x" * 10)
    sync_tree(root)
    sync_folder(root.parent)
    (root / "second").write_text("x")


def last_point(root: Path, fault: disk_faults.Fault, action: Any) -> signal.Signals | int:
    """Does an action whose last call meets a fault; in a process of its own, which this may kill."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]!r}
import disk_faults, test_disk_faults
from pathlib import Path
root = Path(sys.argv[1])
disk = disk_faults.Disk(root, {fault!r}, {action[1]})
disk.install()
test_disk_faults.{action[0].__name__}(root)
"""
    return -subprocess.run([sys.executable, "-c", code, str(root)], check=False).returncode


@pytest.mark.parametrize(
    ("action", "fault", "left"),
    [
        # The calls are mkdir, open, write, [fsync three times,] open, write.
        ((write_without_fsync, 4), "kill", True),
        ((write_without_fsync, 4), "power", False),
        ((write_with_fsync, 7), "power", True),
        ((write_and_sync_by_another_file, 7), "power", True),
        ((write_with_fsync, 4), "power", False),
    ],
)
def test_a_loss_of_power_takes_what_was_not_synced(action: Any, fault: Any, left: bool, tmp_path: Path) -> None:
    root = tmp_path / "out"
    assert last_point(root, fault, action) == signal.SIGKILL
    assert (root / "file").exists() == left
    assert not (root / "second").exists()


@pytest.mark.parametrize(("number", "most", "chosen"), [(3, 5, [1, 2, 3]), (10, 3, [1, 5, 10])])
def test_a_sample_of_points_is_spread(number: int, most: int, chosen: list[int]) -> None:
    assert list(disk_faults.every(number, most)) == chosen
