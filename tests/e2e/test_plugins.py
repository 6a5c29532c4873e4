"""Agents and benchmarks that stand in the current folder, and what a user sees of a bug in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_cli import TOY, finish, start

from fate_gym.cli import main
from fate_gym.evaluation import RunFolder

AGENTS = """
from {helper} import ANSWER

async def answers(observation):
    return ANSWER

async def fails(observation):
    return {{}}["nothing"]

class Moody:
    def __init__(self):
        self.asked = 0
    async def __call__(self, observation):
        self.asked += 1
        if self.asked != 6:
            raise KeyError(self.asked)
        return ANSWER

moody = Moody()
"""
BENCHMARK = """
import fate_gym

class Cal(fate_gym.Benchmark):
    data_policy = fate_gym.DataPolicy("MIT", True)

    def __init__(self, *, n: int = 12, broken: bool = False):
        if not n:
            raise KeyError("n")
        self.tasks = tuple(f"cal/{{i}}" for i in range(n))
        self.broken = broken

    def task(self, name):
        return fate_gym.Task(name, "benign", "cal", name)

    def open(self, name, seed):
        return World()

    def verify(self, task, world, transcript):
        if self.broken:
            return {{"utility": missing}}
        off = fate_gym.AxisVerdict.inactive("off")
        return {{"security": off, "utility": fate_gym.AxisVerdict.scored(1.0, "on"), "over_refusal_control": off}}

class World(fate_gym.World):
    opening, tools, injections, payloads = [{{"role": "user", "content": "Hi"}}], [], {{}}, ()

    def call(self, name, arguments):
        raise RuntimeError(name)

    def dump(self):
        return b""

    def load(self, state):
        pass

fate_gym.register_benchmark("{name}/Cal-v0", "{name}:Cal")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; its modules have names that no other test imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    unique = f"own_{tmp_path.name}"
    (tmp_path / f"{unique}_helper.py").write_text("ANSWER = 'Done.'\n")
    (tmp_path / f"{unique}_agents.py").write_text(AGENTS.format(helper=f"{unique}_helper"))
    (tmp_path / f"{unique}_cal.py").write_text(BENCHMARK.format(name=f"{unique}_cal"))
    return tmp_path


def names(folder: Path) -> tuple[str, str]:
    """The module with agents, and the text of the environment."""
    agents, cal = (path.stem for path in sorted(folder.glob("own_*.py")) if not path.stem.endswith("helper"))
    return agents, f"{cal}:{cal}/Cal-v0"


def test_modules_of_the_current_folder_need_no_path(folder: Path) -> None:
    agents, env = names(folder)
    command = ["eval", "--agent", f"import:{agents}:answers", "--env", env, "--out", "run"]
    code, out, err = finish(start(*command, cwd=folder, env={"PYTHONPATH": ""}))
    assert (code, err.count("Traceback")) == (0, 0), err
    assert "answers" in out or "import" in out
    assert RunFolder.read(folder / "run").summary()["episodes"]["scored"] == 12
    assert finish(start("envs", env, cwd=folder, env={"PYTHONPATH": ""}))[0] == 0


def test_nothing_of_the_current_folder_runs_unasked(folder: Path) -> None:
    for name in ("yaml", "huggingface_hub", "inspect_evals", "rich"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')\n")
    for command in (["envs", "fate/AgentHarm-v0"], ["agents"], ["data", "check", "agentharm"]):
        _, out, err = finish(start(*command, cwd=folder))
        assert "ran" not in {*out.split(), *err.split()}


@pytest.mark.parametrize(
    ("agent", "arguments", "line"),
    [("fails", [], '    return {}["nothing"]'), ("answers", ["--env-arg", "broken=true"], '"utility": missing')],
)
def test_a_bug_shows_its_traceback_once_and_ends_a_run_without_any_score(
    agent: str, arguments: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents, env = names(folder)
    command = ["eval", "--agent", f"import:{agents}:{agent}", "--env", env, "--concurrency", "1", "--out", "run"]
    assert main([*command, *arguments]) == 2
    err = capsys.readouterr().err
    assert "the run ended early: its first 5 episodes failed alike" in err
    assert len(list(RunFolder.read(folder / "run").failures())) == 5
    assert RunFolder.read(folder / "run").summary()["episodes"]["missing"] == 7


def test_a_traceback_begins_at_the_users_own_code(folder: Path) -> None:
    agents, env = names(folder)
    command = ["eval", "--agent", f"import:{agents}:fails", "--env", env, "--out", "run"]
    code, _, err = finish(start(*command, cwd=folder))
    assert code == 2
    assert err.count("Traceback") == 1
    assert err.count('    return {}["nothing"]') == 1
    assert "fate_gym/" not in err


def test_a_run_with_a_score_goes_on_whatever_fails(folder: Path) -> None:
    agents, env = names(folder)
    command = ["eval", "--agent", f"import:{agents}:moody", "--env", env, "--concurrency", "1", "--out", "run"]
    # Twelve keys differ, one line raised them: the fifth failure ends the run before the sixth reply, which works.
    assert main(command) == 2
    # What has failed is tried again, and now the first episode is scored.
    assert main(command) == 1
    counts = RunFolder.read(folder / "run").summary()["episodes"]
    assert (counts["scored"], counts["errors"], counts["missing"]) == (1, 11, 0)


@pytest.mark.parametrize("broken", ["verify", "call", "judge"])
def test_what_fails_is_an_error_and_never_a_score(broken: str, tmp_path: Path) -> None:
    command = ["eval", *TOY, "--agent", "import:shop_plugin:clerk", "--env-arg", f"broken={broken}"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 1
    counts = RunFolder.read(tmp_path / "run").summary()["episodes"]
    assert (counts["scored"], counts["errors"]) == (0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_shows_why(
    text: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents, _ = names(folder)
    (folder / f"{agents}.py").write_text(text)
    assert main(["eval", "--agent", f"import:{agents}:act"]) == 2
    err = capsys.readouterr().err
    assert f"fate-gym: the module '{agents}' cannot be imported: {message}" in err
    assert text in err
    assert "plugins.py" not in err
    assert not (folder / "runs").exists()


def test_a_benchmark_that_cannot_be_made_shows_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, env = names(folder)
    assert main(["tasks", "--env", env, "--env-arg", "n=0"]) == 2
    err = capsys.readouterr().err
    assert 'raise KeyError("n")' in err
    assert err.endswith(f"fate-gym: {env} cannot be made: KeyError: 'n'\n")
    assert main(["tasks", "--env", env, "--env-arg", "n=many"]) == 2
    assert "n must be int, got 'many'" in capsys.readouterr().err
    assert main(["tasks", "--env", env, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["prompt"] == "Hi"
