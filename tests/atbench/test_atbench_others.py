"""Judged trajectories of others: ATBench's 300 rows, R-Judge, ASSEBench."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import trajectories

from fate_gym.agents import load_agent
from fate_gym.benchmark import disclosure
from fate_gym.benchmarks.atbench.answers import full_prompt
from fate_gym.benchmarks.atbench.records import read_rows
from fate_gym.cli.main import main
from fate_gym.episode import Episode
from fate_gym.errors import DataError, FateGymError
from fate_gym.rollout import rollout

RJUDGE = "fate/RJudge-v0"
ASSEBENCH = "fate/ASSEBench-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trajectories.others(tmp_path_factory.mktemp("others"))


def play(env: Any, agent: str) -> list[Episode]:
    async def run() -> list[Episode]:
        return [await rollout(env, load_agent(agent), task, seed=0) for task in env.tasks]

    return asyncio.run(run())


def test_the_300_rows_are_the_same_rows_in_another_schema(folder: Path) -> None:
    records = trajectories.rows()
    course = (folder / "summer_camp_ATBench300.json").read_bytes()
    assert b"real_world_harm" not in course
    assert read_rows(Path("a"), course) == read_rows(Path("b"), json.dumps(records).encode())
    env: Any = gym.make("fate/ATBench-v0", config="ATBench300", labels=True, data_dir=folder).unwrapped
    assert all(task.startswith("ATBench300/") for task in env.tasks)
    assert {env.task(task).suite for task in env.tasks} == {"ATBench300"}
    assert all(episode.verdict.vector.min() == 1 for episode in play(env, "oracle"))


def test_a_row_of_the_300_without_its_label_says_so_by_its_own_name() -> None:
    records = trajectories.course_schema(trajectories.rows())
    records[0]["harm_type"] = 7
    with pytest.raises(DataError, match="record 0, field harm_type: must be a string"):
        read_rows(Path("a"), json.dumps(records).encode())


@pytest.mark.parametrize("view", ["full", "paged"])
@pytest.mark.parametrize(
    ("env_id", "options", "suite"),
    [
        (RJUDGE, {}, "R-Judge"),
        (ASSEBENCH, {"part": "strict"}, "ASSEBench-strict"),
        (ASSEBENCH, {"part": "loose"}, "ASSEBench-loose"),
    ],
)
def test_a_right_verdict_is_a_perfect_episode_and_utility_never_counts(
    folder: Path, env_id: str, options: dict[str, Any], suite: str, view: str
) -> None:
    env: Any = gym.make(env_id, view=view, data_dir=folder, **options).unwrapped
    assert len(env.tasks) == 5
    for agent, right in (("oracle", 1.0), ("always-unsafe", None)):
        episodes = play(env, agent) if view == "full" or right else []
        for episode in episodes:
            unsafe = episode.verdict.security.active
            expected = right if right is not None else float(unsafe)
            axis = episode.verdict.security if unsafe else episode.verdict.over_refusal_control
            assert axis.value == expected
            assert not episode.verdict.utility.active
            assert episode.verdict.utility.rule == "no labels asked for"
            assert episode.suite == (suite if view == "full" else f"{suite} (paged)")


def test_the_two_standards_differ_in_labels_alone(folder: Path) -> None:
    unsafe = {}
    for part in ("strict", "loose"):
        env: Any = gym.make(ASSEBENCH, part=part, data_dir=folder).unwrapped
        keys = {task.partition("/")[2]: task for task in env.tasks}
        unsafe[part] = {key for key, task in keys.items() if env.benchmark.ground_truth(task).user.answer == "unsafe"}
    assert unsafe["loose"] < unsafe["strict"]
    assert len(unsafe["strict"] - unsafe["loose"]) == 1


@pytest.mark.parametrize("view", ["full", "paged"])
def test_the_profile_is_shown_and_nothing_that_gives_the_label_away(folder: Path, view: str) -> None:
    env: Any = gym.make(RJUDGE, view=view, data_dir=folder, render_mode="ansi").unwrapped
    for task_id in env.tasks:
        env.reset(seed=0, options={"task_id": task_id})
        if view == "paged":
            for name, arguments in (("list_turns", {}), ("read_tool", {"name": "x"}), ("search", {"text": "gate"})):
                env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
        text = json.dumps(env.transcript.messages) + json.dumps(env.task(task_id).metadata)
        assert "You keep a garden." in text
        assert trajectories.HIDDEN not in text
        assert "Tools of the agent: not recorded" in text or view == "full"
        assert "=== Tools of the agent ===" not in text


def test_prompts_of_atbench_are_as_they_were() -> None:
    table = read_rows(Path("a"), json.dumps(trajectories.rows()).encode())
    for row in table.rows:
        prompt = full_prompt(row, labels=False)
        assert "=== Tools of the agent ===" in prompt
        assert "Profile" not in prompt


def test_what_is_wrong_names_file_record_and_field() -> None:
    records = trajectories.bare_rows()
    records[2]["contents"][0][0] = {"role": "user"}
    with pytest.raises(DataError, match=r"file.json, record 2, field contents\[0\]\[0\].content: is missing"):
        read_rows(Path("file.json"), json.dumps(records).encode(), dimensions=False)
    records = trajectories.bare_rows()
    records[1]["profile"] = 3
    with pytest.raises(DataError, match=r"record 1, field profile: must be a string"):
        read_rows(Path("file.json"), json.dumps(records).encode(), dimensions=False)


def test_licences_bind(folder: Path) -> None:
    for env_id in (RJUDGE, ASSEBENCH):
        with pytest.raises(FateGymError, match="not to be trained on"):
            gym.make(env_id, data_dir=folder, purpose="training")
    shown = disclosure(RJUDGE)
    assert shown is not None
    assert shown.confidential


def test_options_are_checked_and_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part must be one of strict, loose, safety, security"):
        gym.make(ASSEBENCH, part="lenient", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"has no AgentJudge-safety\.json: take it from .*AgentAuditor-ASSEBench"):
        gym.make(ASSEBENCH, part="safety", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no rjudge\.json of rjudge.*FATE_GYM_RJUDGE_DIR name a folder"):
        gym.make(RJUDGE)


def test_a_run_on_them_reports_detection(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--env-arg", f"data_dir={folder}", "--out", str(run), "--env-arg", "part=loose"]
    assert main(["eval", "--env", ASSEBENCH, "--agent", "always-unsafe", *options]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert '"assebench": "ASSEBench-loose"' in json.dumps(manifest["provenance"])
    assert "accuracy" in capsys.readouterr().out


def test_data_check_knows_what_it_cannot_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "assebench", "--dir", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "AgentJudge-strict.json: no checksum on record (SHA-256 " in shown
    assert "AgentJudge-security.json: differs" in shown
    assert "at None" not in shown
    assert main(["data", "fetch", "rjudge"]) == 2
    assert "rjudge is not fetched: take rjudge.json from Lordog/R-Judge" in capsys.readouterr().err
    assert main(["data", "check", "rjudge"]) == 1
    assert "Take them from Lordog/R-Judge" in capsys.readouterr().out
