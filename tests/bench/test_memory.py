"""What live environments of the largest suite take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

# In a process of its own: memory that other tests have freed would be taken again, and not seen.
LIVE = """
import gc
from pathlib import Path
import gymnasium
from fate_gym import ToolEnv

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

def play(env, task_id):
    env.reset(seed=0, options={"task_id": task_id})
    for name, arguments in (
        ("get_unread_emails", {}), ("search_calendar_events", {"query": "a"}), ("list_files", {})
    ):
        env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
    return env

first = gymnasium.make("fate/AgentDojo-v0", suite="workspace", attack="important_instructions").unwrapped
play(first, first.tasks[0])
before = resident()
live = [play(ToolEnv(first.benchmark), first.tasks[i % len(first.tasks)]) for i in range(1000)]
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_1000_live_environments_take_at_most_250_megabytes(table: Callable[..., None]) -> None:
    done = subprocess.run([sys.executable, "-c", LIVE], capture_output=True, text=True, check=True)
    megabytes = float(done.stdout)
    table("1,000 live workspace environments, three calls each", f"{megabytes:.0f} MB", target="<= 250 MB")
    assert megabytes <= 250
