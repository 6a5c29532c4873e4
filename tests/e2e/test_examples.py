"""Each program in `examples/` runs as it stands, and says what its docstring promises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from openai_server import serve

EXAMPLES = Path(__file__).parents[2] / "examples"
_LONGEST = 95
"""Lines of an example. The benchmark, which has six methods to show, is the longest; the others have half of it."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs an example in an empty folder; what it registers is forgotten afterwards."""
    from agentdojo.attacks.attack_registry import ATTACKS

    attacks, registered, modules = dict(ATTACKS), set(gym.registry), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        # As a program, an example is the module __main__, and may name itself so.
        code = compile((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), name, "exec")
        main = type(sys)("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(code, main.__dict__)  # noqa: S102 (our own text)
        return capsys.readouterr().out.splitlines()

    yield run
    ATTACKS.clear()
    ATTACKS.update(attacks)
    for name in set(gym.registry) - registered:
        del gym.registry[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that answers, and as a judge says yes where a text apologises."""

    def policy(request: dict[str, Any]) -> dict[str, Any]:
        said = request["messages"][-1]["content"]
        return {"content": ("yes" if "sorry" in said.lower() else "no") if "refuse" in said else "Done."}

    with serve(policy) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        yield


def test_every_example_is_tested_and_fits_a_screen() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.stem}"' in source
        assert len(path.read_text(encoding="utf-8").splitlines()) <= _LONGEST


def test_the_loop(run: Any, server: None) -> None:
    printed = run("loop", "scripted")
    assert printed[0] == "banking/user_task_3/injection_task_5"
    assert printed[-4:] == ["security: 1.00", "utility: 0.00", "over_refusal_control: 1.00", "validity: 1.00"]


def test_a_function_is_evaluated(run: Any) -> None:
    printed = run("evaluate_function")
    assert printed[0].startswith("<Run of cautious on fate/AgentDojo-v0: 36 of 36 episodes scored, 0 errors")
    assert any(line.split()[:3] == ["important_instructions", "ASR", "0.00"] for line in printed)


def test_a_benchmark(run: Any) -> None:
    assert run("own_benchmark") == [
        "oracle    utility 100%  ASR 0%",
        "gullible  utility 100%  ASR 100%",
        "noop      utility 0%  ASR 0%",
    ]


def test_an_attack(run: Any) -> None:
    oracle, gullible, custom = run("own_attack")
    assert oracle.startswith("oracle: ASR 0%, reached 100%")
    assert gullible.startswith("gullible: ASR 100%, reached 100%")
    assert "10 of 10 episodes scored" in custom


def test_a_judge(run: Any, server: None) -> None:
    refuser, oracle = run("own_judge", "scripted")
    assert refuser == "refuser: 100% of 5 refused, says judge:scripted"
    assert oracle == "oracle: 0% of 5 refused, says judge:scripted"


def test_vectors(run: Any) -> None:
    shapes, mean, scalars = run("vectors")
    assert shapes.startswith("(4, 4) rewards")
    assert mean == "mean of the active axes: [1. 0. 1. 1.]"
    assert scalars == "scalars: [0.67 0.67]"


def test_best_of_n(run: Any) -> None:
    *candidates, best = run("best_of_n")
    assert len(candidates) == 4
    assert best == "best: does the task"


def test_a_table(run: Any) -> None:
    printed = run("table")
    assert "NaN" in next(line for line in printed if line.startswith("none "))
    again = run("table", str(next(Path("runs").iterdir())))
    assert again == printed


@pytest.mark.slow
def test_a_round_of_fate(run: Any) -> None:
    tasks = "[{attack: [none, tool_knowledge], env_args: {suite: banking, split: train}, repeats: 1}]"
    small = [f"train={tasks}", "base.steps=60", "gate=null", "pfpo.steps=1", "pfpo.groups=2", "pfpo.group_size=4"]
    small += ["evaluate.test.pair.repeats=1", "evaluate.dev.repeats=1"]
    before, after, policy = run("fate_round", "run", *small)[-3:]
    assert before.startswith("before {'ASR'")
    assert after.startswith("after {'ASR'")
    assert policy.startswith("policy: ")
