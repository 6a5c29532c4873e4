"""`eval --workers` under signals and kills: every episode once, one line, and nobody left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import CLERK, TOY, finish, stable, start

from fate_gym.cli import main
from fate_gym.evaluation import RunFolder

pytestmark = pytest.mark.slow

REPEATS = 60


def command(out: Path, workers: int = 2) -> list[str | Path]:
    return ["eval", *TOY, *CLERK, "--repeats", str(REPEATS), "--workers", str(workers), "--out", out]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of the workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for_lines(process: subprocess.Popen[str], out: Path, count: int) -> None:
    log = out / "episodes.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.02)


def wait_for_the_end_of(group: int) -> None:
    """Waits until no process of a group is left."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            time.sleep(0.02)


def test_kills_of_the_command_and_of_a_worker_lose_nothing_and_play_nothing_twice(tmp_path: Path) -> None:
    process = start(*command(tmp_path / "run"))
    wait_for_lines(process, tmp_path / "run", 10)
    process.kill()
    process.communicate()
    wait_for_the_end_of(process.pid)
    kept = len(RunFolder.read(tmp_path / "run").done)
    assert 10 <= kept < 3 * REPEATS
    process = start(*command(tmp_path / "run"))
    wait_for_lines(process, tmp_path / "run", kept + 10)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0
    assert err.count("a worker process ended") == 1
    assert main(["eval", *TOY, *CLERK, "--repeats", str(REPEATS), "--out", str(tmp_path / "alone")]) == 0
    assert len(stable(tmp_path / "run")) == 3 * REPEATS
    assert stable(tmp_path / "run") == stable(tmp_path / "alone")
    assert main(["leaderboard", "verify", str(tmp_path / "run"), "--trust", "shop_plugin"]) == 0


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Terminated.")])
def test_a_signal_to_the_whole_group_ends_the_run_in_one_line(
    number: signal.Signals, ending: str, tmp_path: Path
) -> None:
    process = start(*command(tmp_path / "run"))
    wait_for_lines(process, tmp_path / "run", 1)
    os.killpg(process.pid, number)
    code, _, err = finish(process)
    assert code == 128 + number
    *bars, last = err.splitlines()
    assert last == f"{ending} The same command goes on from here."
    told = [line for line in bars if "/180" not in line and "Licence: MIT" not in line]
    assert told == ["Stopping: episodes under way will end; Ctrl-C again leaves them."] * (number == signal.SIGINT)
    wait_for_the_end_of(process.pid)
    counts = RunFolder.read(tmp_path / "run").summary()["episodes"]
    assert counts["errors"] == 0
    assert counts["scored"] + counts["missing"] == 3 * REPEATS


def test_an_agent_that_cannot_be_sent_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    agent = ["--agent", "import:shop_workers:nameless"]
    code, out, err = finish(start("eval", *TOY, *agent, "--workers", "2", "--out", tmp_path / "run"))
    assert (code, out) == (2, "")
    terms, said = err.splitlines()
    assert "Licence: MIT" in terms
    assert said.startswith("fate-gym: what plays cannot be sent to another process")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what a process blocks from /proc")
def test_the_first_process_too_never_hears_of_signals() -> None:
    # In a new interpreter, since the first process of multiprocessing starts another beside it, which unblocks signals.
    code = """
import multiprocessing, pathlib, time
from fate_gym.evaluation.processes import _signals_blocked
process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
with _signals_blocked():
    process.start()
print(pathlib.Path(f"/proc/{process.pid}/status").read_text())
process.kill()
"""
    status = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    (mask,) = re.findall(r"SigBlk:\s*([0-9a-f]+)", status)
    blocked = int(mask, 16)
    assert all(blocked >> number - 1 & 1 for number in (signal.SIGINT, signal.SIGTERM))
