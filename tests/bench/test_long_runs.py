"""A run of ten times as many episodes takes ten times as long to resume and to show, and hardly more memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from long_runs import long_config, write_long_run

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere"),
]

SUITE = ["banking"]
REPEATS = (10, 100)
LEFT_OUT = 5

# Each in a process of its own: the most memory that a process ever held does not fall again.
START = """
import asyncio, json, resource, sys, time
from pathlib import Path
from long_runs import MIXED, long_config
folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
config = long_config(folder, repeats, env_args={"suite": ["banking"]})

def most():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
END = """
print(json.dumps({"seconds": time.process_time() - began, "bytes": most()}))
"""
RESUME = """
from fate_gym.evaluation import run_evaluation
plan = config.plan()
began = time.process_time()
run = asyncio.run(run_evaluation(config, MIXED, plan=plan))
assert run.summary["episodes"]["missing"] == 0 == run.summary["episodes"]["errors"]
"""
BOARD = """
from fate_gym.leaderboards import build, load_runs
from fate_gym.leaderboards.comparison import compare
from fate_gym.leaderboards.site.grids import grids
from fate_gym.leaderboards.site.runs import survey_run
began = time.process_time()
one, other = load_runs([folder, folder.with_name("copy-" + folder.name)])
assert len(build([one, other])[0].rows) == 4
assert grids(survey_run(one, private=False))
assert compare(one, other).only_a == 0
"""


@pytest.mark.parametrize(("work", "job"), [("resumed to its summary", RESUME), ("on a board, with another", BOARD)])
def test_ten_times_the_episodes_take_ten_times_as_long_and_no_memory(
    work: str, job: str, tmp_path: Path, table: Callable[..., None]
) -> None:
    found = []
    for repeats in REPEATS:
        folder = tmp_path / str(repeats)
        config = long_config(folder, repeats, env_args={"suite": SUITE})
        write_long_run(config, LEFT_OUT if job is RESUME else 0)
        if job is BOARD:
            folder.with_name(f"copy-{repeats}").symlink_to(folder)
        done = subprocess.run(
            [sys.executable, "-c", START + job + END, str(folder), str(repeats)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        )
        found.append((len(config.plan().items), json.loads(done.stdout.splitlines()[-1])))
    (few, small), (many, large) = found
    assert many == 10 * few
    ratio = large["seconds"] / small["seconds"]
    growth = (large["bytes"] - small["bytes"]) / (many - few)
    table(
        f"{many:,} recorded episodes {work} (peer: {few:,} of them)",
        f"{large['seconds']:.2f} s",
        f"{small['seconds']:.2f} s",
        f"{ratio:.1f}x",
        "<= 12x",
    )
    table(f"{work}: memory for each further episode", f"{growth:.0f} bytes", target="<= 300 bytes")
    assert ratio <= 12
    assert growth <= 300
