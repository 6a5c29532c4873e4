"""Ctrl-C and SIGTERM at every moment end in one line, with the exit code of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import BANKING, CLERK, SUPPORT, TOY, finish, start

from fate_gym.evaluation import RunFolder

MODULES = [
    "fate_gym",
    "numpy",
    "gymnasium.core",
    "rich.console",
    "fate_gym.cli.main",
    "fate_gym.cli.training",
    "fate_gym.agents",
    "fate_gym.benchmarks.agentdojo.benchmark",
    "agentdojo.default_suites.v1.banking.task_suite",
    "pydantic",
]
ENDINGS = {"SIGINT": ("Interrupted.", 130), "SIGTERM": ("Terminated.", 143)}


def signalled_at(name: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that gets a signal when it first imports a module."""
    command = [sys.executable, str(SUPPORT / "signal_at.py"), name, module, *arguments]
    env = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def check_ending(name: str, process: subprocess.CompletedProcess[str]) -> None:
    text, code = ENDINGS[name]
    assert process.returncode == code
    sent, *bars, ending = process.stderr.splitlines()
    assert sent == "sent"
    assert ending.startswith(text)
    assert all("--:--" in line for line in bars)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_while_the_program_starts(name: str, module: str, tmp_path: Path) -> None:
    command = ["eval", "--agent", "noop", *BANKING, "--out", str(tmp_path / "run")]
    process = signalled_at(name, module, *command)
    check_ending(name, process)
    assert process.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch.nn", "transformers.modeling_utils"])
@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_while_a_model_loads(name: str, module: str, tmp_path: Path) -> None:
    check_ending(name, signalled_at(name, module, "train", "--config", "fate-tiny", "--out", str(tmp_path / "run")))


def test_sigterm_leaves_a_summary_and_the_same_command_goes_on(tmp_path: Path) -> None:
    agent = ["--agent", "import:shop_plugin:terminated"]
    command = ["eval", *TOY, *agent, "--concurrency", "1", "--out", tmp_path / "run"]
    code, out, err = finish(start(*command))
    assert code == 143
    assert err.splitlines()[-1] == "Terminated. The same command goes on from here."
    assert "run: " in out
    counts = RunFolder.read(tmp_path / "run").summary()["episodes"]
    assert counts == {"planned": 3, "scored": 0, "errors": 0, "missing": 3}


def test_a_thread_that_never_ends_keeps_nobody_waiting(tmp_path: Path) -> None:
    environment = ["--env", "shop_plugin:toy/Parcels-v0", "--env-arg", "broken=asleep"]
    process = start("eval", *environment, *CLERK, "--out", tmp_path / "run")
    assert process.stderr is not None
    for line in process.stderr:
        if line == "asleep\n":
            break
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143
    assert "Terminated." in err
