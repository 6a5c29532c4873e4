"""After an install as README or CONTRIBUTING has it, a type checker finds every package and its types."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["fate_gym", "agents", "configs", "leaderboards", "trainers"]

USER = """
from fate_gym import Task, ToolEnv
from fate_gym.agents import Agent, load_agent
from fate_gym.benchmarks.agentdojo.benchmark import AgentDojo
from fate_gym.leaderboards import board
from fate_gym.trainers import config

def first(env: ToolEnv) -> Task:
    return env.task(env.tasks[0])

agent: Agent = load_agent("oracle")
mode: str = first(ToolEnv(AgentDojo())).mode
modules = (board, config)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [[], ["--config-settings", "editable_mode=strict", "--editable"]], ids=["plain", "strict"]
)
def test_a_strict_checker_finds_the_types(form: list[str], tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in SOURCES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "fate_gym_start.py"):
        shutil.copy(ROOT / name, checkout)
    # An environment that holds this package alone. Its dependencies are those of the environment that runs the tests.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall", *form, checkout]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)

    def problems(program: str) -> str:
        (tmp_path / "user.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "user.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    assert problems(USER) == "Success: no issues found in 1 source file\n"
    wrong = problems(USER + 'count: int = load_agent("oracle")\n')
    assert 'expression has type "Agent", variable has type "int"' in wrong
    assert "Found 1 error" in wrong
