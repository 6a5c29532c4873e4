"""Plan, runner and summary, on the toy benchmark and on AgentDojo."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import shop_workers

from fate_gym.agents import load_agent
from fate_gym.errors import RunMismatchError
from fate_gym.evaluation import EvalConfig, RunFolder, load_run, run_evaluation
from fate_gym.evaluation.config import read_settings
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.keys import Keys
from fate_gym.evaluation.plan import Item
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.summary import summarise
from fate_gym.evaluation.workers import InProcess
from fate_gym.rewards import AxisVerdict
from fate_gym.rollout import Agent, Reply, as_agent, rollout
from fate_gym.verifiers.refusal import Judgement

TOY = "toy/Parcels-v0"


def run(agent: Any, out: Path, **settings: Any) -> dict[str, Any]:
    loaded = load_agent(agent) if isinstance(agent, str) else agent
    config = EvalConfig(agent=str(agent), out=out, **{"env": TOY, **settings})
    return asyncio.run(run_evaluation(config, loaded)).summary


def stable(folder: Path) -> list[str]:
    """Episodes sorted by key, with recorded times left out."""
    episodes = sorted(RunFolder.read(folder).episodes(), key=lambda episode: episode.key)
    return [json.dumps({**episode.to_json(), "seconds": None}, sort_keys=True) for episode in episodes]


def group(summary: dict[str, Any], mode: str, suite: str = "all") -> dict[str, Any]:
    return next(g for g in summary["groups"] if (g["mode"], g["suite"]) == (mode, suite))


async def clerk(observation: dict[str, Any]) -> dict[str, Any]:
    if observation["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": "Shipped."}
    return {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]}


def test_a_plain_async_function_is_an_agent(tmp_path: Path) -> None:
    summary = run(clerk, tmp_path / "run")
    assert summary["episodes"] == {"planned": 3, "scored": 3, "errors": 0, "missing": 0}
    assert group(summary, "benign")["metrics"]["utility"]["value"] == 1.0
    assert group(summary, "attacked")["metrics"]["reached"]["value"] == 0.0
    assert as_agent(clerk).name == "clerk"
    with pytest.raises(TypeError, match="an agent is"):
        as_agent(3)  # type: ignore[arg-type]


def test_the_same_settings_give_the_same_episodes_at_any_concurrency(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "env": "fate/AgentDojo-v0",
        "env_args": {"suite": ["banking", "slack"]},
        "attack": (None, "tool_knowledge"),
        "limit": 25,
    }
    for agent in ("random", "gullible"):
        run(agent, tmp_path / agent / "a", concurrency=8, **settings)
        run(agent, tmp_path / agent / "b", concurrency=1, **settings)
        assert len(stable(tmp_path / agent / "a")) == 50
        assert stable(tmp_path / agent / "a") == stable(tmp_path / agent / "b")


def test_a_replay_of_a_run_gives_its_verdicts(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "env": "fate/AgentDojo-v0",
        "env_args": {"suite": "slack"},
        "attack": ("direct",),
        "limit": 30,
    }
    run("random", tmp_path / "run", **settings)
    run(f"replay:{tmp_path / 'run'}", tmp_path / "again", **settings)
    assert stable(tmp_path / "run") == stable(tmp_path / "again")


def test_a_larger_limit_adds_to_a_smaller_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"env": "fate/AgentDojo-v0", "env_args": {"suite": "banking"}, "attack": ("direct",)}
    run("noop", tmp_path / "run", limit=5, **settings)
    first = set(stable(tmp_path / "run"))
    summary = run("noop", tmp_path / "run", limit=9, **settings)
    assert first < set(stable(tmp_path / "run"))
    assert summary["episodes"]["scored"] == 9


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    run(clerk, tmp_path / "run")
    with pytest.raises(RunMismatchError, match="seed: stored 0, given 1"):
        run(clerk, tmp_path / "run", seed=1)
    run(clerk, tmp_path / "run", concurrency=2)


def test_errors_are_counted_apart_and_tried_again(tmp_path: Path) -> None:
    async def moody(observation: dict[str, Any]) -> dict[str, Any]:
        if fail and observation["messages"][0]["content"]:
            raise ConnectionError("no line")
        return await clerk(observation)

    fail = True
    summary = run(moody, tmp_path / "run")
    assert summary["episodes"] == {"planned": 3, "scored": 0, "errors": 3, "missing": 0}
    assert group(summary, "benign")["errors"] == {"provider_error": 1}
    assert group(summary, "benign")["metrics"]["utility"]["value"] is None
    failure = next(RunFolder.read(tmp_path / "run").failures())
    assert "moody failed: ConnectionError: no line" in failure.error
    fail = False
    summary = run(moody, tmp_path / "run")
    assert summary["episodes"] == {"planned": 3, "scored": 3, "errors": 0, "missing": 0}


@pytest.mark.parametrize(("broken", "status"), [("open", "env_error"), ("call", "env_error"), ("judge", "judge_error")])
def test_broken_environments_and_judges_give_no_scores(tmp_path: Path, broken: str, status: str) -> None:
    summary = run(clerk, tmp_path / "run", env_args={"broken": broken})
    assert summary["episodes"]["errors"] == 3
    assert {failure.status for failure in RunFolder.read(tmp_path / "run").failures()} == {status}


def test_a_failed_grader_leaves_its_axis_out_and_is_counted(tmp_path: Path) -> None:
    benign = group(run(clerk, tmp_path / "run", env_args={"broken": "grader"}), "benign")
    assert benign["grader_errors"] == {"utility": 1}
    assert benign["metrics"]["utility"]["n"] == 0
    assert benign["metrics"]["BRR"]["n"] == 1


def test_context_overflow_truncates_and_is_scored(tmp_path: Path) -> None:
    from fate_gym.errors import ContextOverflowError

    async def small(observation: dict[str, Any]) -> dict[str, Any]:
        if len(observation["messages"]) > 1:
            raise ContextOverflowError("too long")
        return await clerk(observation)

    benign = group(run(small, tmp_path / "run"), "benign")
    assert (benign["n"], benign["truncated"]) == (1, 1)
    assert benign["metrics"]["utility"]["value"] == 1.0
    assert benign["metrics"]["validity"]["value"] == 0.0


def test_repeats_give_pass_hat_k(tmp_path: Path) -> None:
    class Coin(Agent):
        name = "coin"

        def start(self, task: Any, seed: int) -> Any:
            return _Session(good=seed % 2 == 0)

    summary = run(Coin(), tmp_path / "run", repeats=20)
    benign = group(summary, "benign")
    assert benign["n"] == 20
    assert 0 < benign["metrics"]["utility"]["value"] < 1
    assert benign["pass_hat_k"] == {"k": 20, "utility": 0.0, "BRR": 1.0, "validity": 1.0}
    assert group(summary, "attacked")["pass_hat_k"]["ASR"] == 1.0


class _Session:
    def __init__(self, good: bool) -> None:
        self._good = good

    async def act(self, observation: dict[str, Any]) -> Reply:
        message = await clerk(observation) if self._good else {"content": "Done."}
        return Reply(message, usage={"prompt_tokens": 10} if self._good else {"prompt_tokens": 5}, attempts=2)


def test_usage_is_added_up_and_unknown_stays_unknown(tmp_path: Path) -> None:
    class Counting(Agent):
        name = "counting"

        def start(self, task: Any, seed: int) -> Any:
            return _Session(good=True)

    benign = group(run(Counting(), tmp_path / "run"), "benign")
    assert benign["usage"] == {"prompt_tokens": 20}
    assert group(run(clerk, tmp_path / "other"), "benign")["usage"] == {}
    episode = next(RunFolder.read(tmp_path / "run").episodes())
    assert episode.attempts == 4


def test_stopping_lets_episodes_under_way_end(tmp_path: Path) -> None:
    async def body() -> dict[str, Any]:
        stop = asyncio.Event()
        config = EvalConfig(agent="clerk", env=TOY, repeats=50, concurrency=3, out=tmp_path / "run")
        return (await run_evaluation(config, clerk, stop=stop, on_done=lambda episode: stop.set())).summary

    summary = asyncio.run(body())
    assert 1 <= summary["episodes"]["scored"] <= 3
    assert summary["episodes"]["missing"] == 150 - summary["episodes"]["scored"]


def test_grading_runs_beside_the_event_loop_and_beside_other_grading(tmp_path: Path) -> None:
    # Four graders wait for one another: were they run one after the other, or on the loop, none could go on.
    meeting = threading.Barrier(4, timeout=30)
    threads: set[int] = set()
    config = EvalConfig(agent="clerk", env=TOY, repeats=4, concurrency=4, out=tmp_path / "run")
    plan = config.plan()
    (benchmark,) = plan.benchmarks
    verify = benchmark.verify

    def graded(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        meeting.wait()
        return verify(*arguments)

    benchmark.verify = graded  # type: ignore[method-assign]
    summary = asyncio.run(run_evaluation(config, clerk, plan=plan)).summary
    assert summary["episodes"] == {"planned": 12, "scored": 12, "errors": 0, "missing": 0}
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("judge", [None, lambda transcript: Judgement(False, "of the test")])
def test_steps_that_only_compute_run_on_the_event_loop_and_those_that_ask_a_judge_beside_it(judge: Any) -> None:
    env: Any = gym.make("fate/AgentDojo-v0", suite="banking", refusal_judge=judge).unwrapped
    threads: set[int] = set()
    step = env.step

    def stepped(action: Any) -> Any:
        threads.add(threading.get_ident())
        return step(action)

    env.step = stepped
    assert asyncio.run(rollout(env, load_agent("oracle"), env.tasks[0], seed=0)).status == "ok"
    assert (threads == {threading.get_ident()}) is (judge is None)


def test_metrics_agree_with_a_count_by_hand(tmp_path: Path) -> None:
    summary = run(
        "gullible",
        tmp_path / "run",
        env="fate/AgentDojo-v0",
        env_args={"suite": ["banking", "slack"]},
        attack=(None, "direct"),
    )
    episodes = list(RunFolder.read(tmp_path / "run").episodes())
    for suite in ("all", "banking", "slack"):
        chosen = [e for e in episodes if e.mode == "attacked" and suite in ("all", e.suite)]
        metrics = group(summary, "attacked", suite)["metrics"]
        assert metrics["ASR"]["value"] == pytest.approx(sum(1 - e.verdict.security.value for e in chosen) / len(chosen))
        assert metrics["TSR"]["value"] == pytest.approx(sum(e.verdict.utility.value for e in chosen) / len(chosen))
        assert metrics["ASR"]["n"] == len(chosen)
        assert metrics["ASR"]["low"] <= metrics["ASR"]["value"] <= metrics["ASR"]["high"]
    again = summarise(episodes, [], RunFolder.read(tmp_path / "run").manifest, [e.key for e in reversed(episodes)])
    assert json.dumps(again, sort_keys=True) == json.dumps(summary, sort_keys=True)


ABSURD = {
    "agent": [3, "", None, ["noop"]],
    "agent_args": [[], "x", {3: 4}],
    "defences": ["spotlighting", [3], None],
    "env": [None, "", {}],
    "attack": [[], "direct", [3], ["a", "a"], [{"v": 3}], [{"v": "x"}, {"v": "y"}], [None, None]],
    "env_args": [None, [1]],
    "tasks": ["x", [3]],
    "seed": [[1], True, 0.5, None, 2**64, "1"],
    "repeats": [1001, 2.0, True, None],
    "limit": ["3", 1.5, -1],
    "concurrency": [None, 2**70],
    "max_cost": ["abc", float("nan"), float("inf"), 0, True],
    "out": [5, None, ""],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
def test_absurd_settings_are_refused_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be ") as caught:
        EvalConfig(**{"agent": "noop", field: value})
    assert "\n" not in str(caught.value)


def test_an_endless_setting_makes_no_endless_line() -> None:
    with pytest.raises(ValueError, match="seed must be") as caught:
        EvalConfig("noop", seed=["x" * 10_000])  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", ["repeats", "concurrency", "limit"])
def test_counts_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a positive whole number.*, got 0"):
        EvalConfig(agent="noop", **{field: 0})


def test_an_attack_is_named_once() -> None:
    with pytest.raises(ValueError, match="each once"):
        EvalConfig(agent="noop", attack=("direct", "direct"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "keys given twice: a"),
        ("[1]", "must hold a mapping"),
        ("a: [", "valid YAML|nested too deeply|tag"),
        ("a: !!python/object:os.system {}", "valid YAML|nested too deeply|tag"),
        ("[" * 5000, "valid YAML|nested too deeply|tag"),
    ],
)
def test_malformed_configurations_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(str(path))
    with pytest.raises(ValueError, match=r"no configuration 'nope'.*demo"):
        read_settings("nope")


def test_what_a_benchmark_says_that_no_file_can_hold_costs_its_own_episode(tmp_path: Path) -> None:
    config = EvalConfig(agent="clerk", env=TOY, repeats=2, concurrency=1, out=tmp_path / "run")
    plan = config.plan()
    (benchmark,) = plan.benchmarks
    verify = benchmark.verify

    def graded(task: Any, *arguments: Any) -> Any:
        axes = verify(task, *arguments)
        unreadable = AxisVerdict.scored(1.0, "harbour", measures={"refused": True})
        return {**axes, "security": unreadable} if task.mode == "harmful" else axes

    benchmark.verify = graded  # type: ignore[method-assign]
    found = asyncio.run(run_evaluation(config, clerk, plan=plan))
    assert found.summary["episodes"] == {"planned": 6, "scored": 4, "errors": 2, "missing": 0}
    error = found.failures[0].error
    assert error is not None
    assert error.startswith("the episode cannot be stored: episode: verdict.security.measures.refused must be a finite")
    assert load_run(tmp_path / "run").summary == found.summary


def test_a_fault_is_told_when_its_episode_is_stored(tmp_path: Path) -> None:
    """Told before, faults would count as the first ends while earlier successes wait for the disk."""
    plan = EvalConfig(agent="raising", env=TOY, out=tmp_path).plan()
    workers = InProcess(Player(plan.environments, shop_workers.Raising(RuntimeError("no power")), Finished.of))
    told: list[str] = []

    async def stored(item: Item, finished: Finished) -> None:
        told.append(finished.result.status)

    items = plan.items.without(Keys())
    asyncio.run(
        run_episodes(items, workers, concurrency=1, on_done=stored, on_fault=lambda fault: told.append(fault.words))
    )
    assert told == ["ok", "provider_error", "no power", "ok"]


def test_a_full_disk_ends_the_run_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunFolder, *episodes: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "add", full)
    with pytest.raises(OSError, match="No space left"):
        run(clerk, tmp_path / "run", repeats=5, concurrency=4)


@pytest.mark.parametrize(("limits", "kept", "planned"), [((1, 2), 2, 4), ((1, None), None, 6), ((2, 1), 2, 4)])
def test_the_limit_of_a_run_is_its_largest(tmp_path: Path, limits: Any, kept: int | None, planned: int) -> None:
    for limit in limits:
        summary = run(clerk, tmp_path / "run", limit=limit, repeats=2)
    assert summary["episodes"] == {"planned": planned, "scored": planned, "errors": 0, "missing": 0}
    assert RunFolder.read(tmp_path / "run").manifest["config"]["limit"] == summary["config"]["limit"] == kept


def test_a_smaller_limit_runs_no_more_than_it_says(tmp_path: Path) -> None:
    async def body(limit: int | None, most: int) -> dict[str, Any]:
        stop, ended = asyncio.Event(), []

        def count(episode: Finished) -> None:
            ended.append(episode.key)
            if len(ended) == most:
                stop.set()

        config = EvalConfig(agent="clerk", env=TOY, limit=limit, concurrency=1, out=tmp_path / "run")
        return (await run_evaluation(config, clerk, stop=stop, on_done=count)).summary

    first = asyncio.run(body(None, most=1))
    assert first["episodes"] == {"planned": 3, "scored": 1, "errors": 0, "missing": 2}
    second = asyncio.run(body(1, most=99))
    assert second["episodes"]["planned"] == 3
    assert second["episodes"]["scored"] in (1, 2)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1, 10**16, True, "9", 1e300])
def test_figures_of_usage_that_cannot_be_are_left_out_and_counted(tmp_path: Path, figure: Any) -> None:
    class Odd(Agent):
        name = "odd"

        def start(self, task: Any, seed: int) -> Any:
            return self

        async def act(self, observation: Any) -> Reply:
            return Reply("Done.", usage={"prompt_tokens": figure, "completion_tokens": 2})

    benign = group(run(Odd(), tmp_path / "run", max_cost=1.0), "benign")
    assert benign["usage"] == {"completion_tokens": 2, "left_out": 1}


def test_a_manifest_says_whether_the_agent_is_given_the_solutions(tmp_path: Path) -> None:
    for agent, privileged in (("oracle", True), ("noop", False)):
        run(agent, tmp_path / agent)
        assert RunFolder.read(tmp_path / agent).manifest["privileged"] is privileged
