"""The Python interface as its users meet it: from an agent to a run, and what a run shows."""

from __future__ import annotations

import asyncio
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import fate_gym
from fate_gym.cli import main
from fate_gym.errors import RunError, UsageError

TOY = "toy/Parcels-v0"


def clerk(observation: dict[str, Any]) -> dict[str, Any]:
    if observation["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": "Shipped."}
    return {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]}


async def clerk_async(observation: dict[str, Any]) -> dict[str, Any]:
    return clerk(observation)


class Clerk:
    def __call__(self, observation: dict[str, Any]) -> dict[str, Any]:
        return clerk(observation)


class AsyncClerk:
    async def __call__(self, observation: dict[str, Any]) -> dict[str, Any]:
        return clerk(observation)


@pytest.mark.parametrize(
    "agent",
    [clerk, clerk_async, Clerk(), AsyncClerk(), lambda observation: clerk_async(observation), "oracle"],
    ids=["function", "async function", "object", "async object", "function of a coroutine", "text"],
)
def test_anything_that_acts_can_be_evaluated(agent: Any, tmp_path: Path) -> None:
    run = fate_gym.evaluate(agent, env=TOY, out=str(tmp_path / "run"))
    assert run.summary["episodes"] == {"planned": 3, "scored": 3, "errors": 0, "missing": 0}
    assert run.metrics["benign"]["utility"].value == 1.0
    assert run.path == tmp_path / "run"


def test_plain_functions_run_beside_each_other(tmp_path: Path) -> None:
    # Three calls wait for one another: one after the other, none could go on.
    meeting = threading.Barrier(3, timeout=30)

    def slow(observation: dict[str, Any]) -> str:
        meeting.wait()
        return "Done."

    assert not fate_gym.evaluate(slow, env=TOY, out=tmp_path / "run").failures


def test_it_runs_where_an_event_loop_runs_already(tmp_path: Path) -> None:
    async def cell() -> fate_gym.Run:
        return fate_gym.evaluate(clerk_async, env=TOY, out=tmp_path / "run")

    assert len(asyncio.run(cell()).episodes) == 3


def test_python_and_the_command_line_make_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"suite": "banking", "attack": ["none", "direct"], "tasks": "banking/user_task_1/*"}
    run = fate_gym.evaluate("gullible", out=tmp_path / "run", limit=3, **settings)
    assert list(run.metrics) == ["direct", "benign"]
    flags = ["--suite", "banking", "--attack", "none", "direct", "--tasks", "banking/user_task_1/*", "--limit", "3"]
    assert main(["eval", "--agent", "gullible", *flags, "--out", str(tmp_path / "run")]) == 0
    again = fate_gym.load_run(str(tmp_path / "run"))
    assert again == run
    assert [episode.seconds for episode in again.episodes] == [episode.seconds for episode in run.episodes]


def test_one_attack_may_stand_alone_and_the_folder_follows_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = fate_gym.evaluate("noop", attack="direct", suite="banking", limit=1)
    second = fate_gym.evaluate("noop", attack=["direct"], suite="banking", limit=2)
    assert first.path == second.path
    assert [len(run.episodes) for run in (first, second)] == [1, 2]
    # What a function does may have changed since: its runs are never taken for one another.
    paths = [fate_gym.evaluate(clerk, env=TOY).path for _ in range(2)]
    assert paths[0] != paths[1]


def test_the_name_of_the_model_goes_to_attacks_as_it_does_from_a_shell(tmp_path: Path) -> None:
    from openai_server import serve

    with serve(lambda request: {"content": "Done."}) as url:
        run = fate_gym.evaluate(
            "openai:gpt-4o-2024-05-13", agent_args={"base_url": url}, attack="important_instructions",
            tasks="banking/user_task_1/injection_task_1", out=tmp_path / "run",
        )  # fmt: skip
    assert run.manifest["config"]["env_args"] == {"model_name": "GPT-4"}
    assert "GPT-4" in next(iter(run.episodes[0].injections.values()))


@pytest.mark.parametrize(
    ("agent", "settings", "error", "message"),
    [
        (3, {}, TypeError, "an agent is an `Agent` or a function"),
        (Clerk, {}, TypeError, r"Clerk is a class: give an object of it, Clerk\(...\)"),
        (clerk, {"agent_args": {"x": 1}}, TypeError, "agent_args are the options of an agent that is given as a text"),
        ("gulible", {}, ValueError, "did you mean gullible"),
        ("openai:m", {"agent_args": {"base_url": "http://127.0.0.1:9/v1"}}, UsageError, "cannot be used"),
        (clerk, {"limit": 0}, ValueError, "limit must be a positive whole number"),
        (clerk, {"tasks": "nothing"}, ValueError, "no task of toy/Parcels-v0 matches .nothing."),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    agent: Any, settings: Any, error: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fate_gym.evaluate(agent, env=TOY, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_function_that_returns_nothing_is_a_bug_and_no_move(tmp_path: Path) -> None:
    run = fate_gym.evaluate(lambda observation: None, env=TOY, out=tmp_path / "run")
    assert len(run.failures) == 3
    assert "is there a `return`?" in (run.failures[0].error or "")


def test_an_interrupt_leaves_a_run_that_the_same_call_completes(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background of a shell ignores it.
sys.path[:0] = {[str(Path(__file__).parents[1] / "support")]!r}
import shop_plugin, fate_gym
try:
    fate_gym.evaluate(shop_plugin.clerk, {TOY!r}, repeats=200, concurrency=2, out={str(tmp_path / "run")!r},
                      on_done=lambda done: done.key == "none/shop/ship#0" and os.kill(os.getpid(), signal.SIGINT))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted\n"
    run = fate_gym.load_run(tmp_path / "run")
    assert run.summary["episodes"]["planned"] == 600
    assert 0 < len(run.episodes) < 600
    assert run.summary["episodes"]["missing"] == 600 - len(run.episodes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fate_gym.Run:
    """Attacked and benign episodes of AgentDojo, and one that errored."""
    out = tmp_path_factory.mktemp("python") / "run"

    def moody(observation: dict[str, Any]) -> Any:
        if "like last month" in observation["messages"][1]["content"]:
            raise ConnectionError("no line")
        return "Done."

    tasks = [f"banking/user_task_{i}/*" for i in (1, 2, 10, 14)]
    return fate_gym.evaluate(moody, suite="banking", attack=["none", "direct"], tasks=tasks, out=out)


def test_episodes_stand_in_the_order_of_their_tasks(run: fate_gym.Run) -> None:
    assert len(run.episodes) == len(run.episodes.keys) > 20
    attacked = [episode.task_id.split("/")[1] for episode in run.episodes if episode.mode == "attacked"]
    assert list(dict.fromkeys(attacked)) == sorted(dict.fromkeys(attacked), key=lambda task: int(task.split("_")[-1]))
    assert run.episodes[-1] == list(run.episodes)[-1] == run.episodes[len(run.episodes) - 1]
    assert [episode.key for episode in run.episodes[1:3]] == list(run.episodes.keys[1:3])
    with pytest.raises(IndexError):
        run.episodes[10**6]


def test_an_episode_is_found_by_its_index_and_by_a_part_of_its_key(run: fate_gym.Run) -> None:
    key = "direct/banking/user_task_2/injection_task_3#0"
    for name in (key, "user_task_2/injection_task_3", run.episodes.keys.index(key)):
        assert run.episode(name).key == key
    assert run.episode("none/banking/user_task_10/none#0").status == "provider_error"
    with pytest.raises(UsageError, match=r"episodes of .* have 'injection_task_2' in their key"):
        run.episode("injection_task_2")
    with pytest.raises(UsageError, match="no episode whose key contains 'nothing'"):
        run.episode("nothing")


def test_a_run_says_what_it_is_and_survives_pickling(run: fate_gym.Run) -> None:
    assert repr(run).startswith("<Run of moody on fate/AgentDojo-v0: ")
    again = pickle.loads(pickle.dumps(run))  # noqa: S301 (our own bytes)
    assert again == run
    assert again.episodes[0] == run.episodes[0]


def test_a_table_has_a_row_for_each_episode_and_nan_where_an_axis_does_not_apply(run: fate_gym.Run) -> None:
    table = run.to_dataframe()
    assert len(table) == len(run.episodes) + len(run.failures) == run.summary["episodes"]["planned"]
    assert table["key"].is_unique
    benign = table[table["mode"] == "benign"]
    assert benign["security"].isna().all()
    errored = table[table["status"] != "ok"]
    assert len(errored) == len(run.failures) > 0
    assert errored[list(fate_gym.AXES)].isna().all(axis=None)
    attacked = table[table["mode"] == "attacked"]
    assert 1 - attacked["security"].mean() == pytest.approx(run.metrics["direct"]["ASR"].value)
    assert set(table.groupby("attack")["utility"].mean().index) == {"none", "direct"}
    for episode, row in zip(run.episodes, table.to_dict("records"), strict=False):
        for name, axis in episode.verdict.axes.items():
            assert row[name] == axis.value if axis.active else math.isnan(row[name])


def test_a_table_without_pandas_names_the_install(run: fate_gym.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"^to_dataframe needs pandas: pip install pandas$"):
        run.to_dataframe()


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no manifest.json"):
        fate_gym.load_run(tmp_path)
