"""Pools, sampling, trajectories and stage files: nothing is lost, nothing is paid for twice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import depot  # noqa: F401 (registers the environment)
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.agents import load_agent
from fate_gym.episode import Sample, Trajectory
from fate_gym.errors import FateGymError, RunCorruptError, RunError, RunMismatchError
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.storage import Fields, file_digest, folder_digest
from fate_gym.trainers.episodes import episode_record, mask, policy_tokens, read_episode, vector
from fate_gym.trainers.marks import Origin
from fate_gym.trainers.stage_file import Stage, StageFile, read_stage, write_stage
from fate_gym.trainers.tasks import sample, training_plan

DEPOT = TaskSet("toy/Depot-v0")


def plan(*task_sets: TaskSet, seed: int = 0) -> Plan:
    return training_plan(task_sets or (DEPOT,), seed)


# Pools.


def test_a_plan_holds_every_task_and_repeat_with_a_seed_of_its_own() -> None:
    items = plan(dataclasses.replace(DEPOT, repeats=2)).items
    assert len(items) == 24
    assert len({item.key for item in items}) == len({item.seed for item in items}) == 24
    assert [item.seed for item in items] != [item.seed for item in plan(DEPOT, seed=1).items]


def test_sets_take_patterns_and_leave_some_out() -> None:
    chosen = plan(dataclasses.replace(DEPOT, tasks=("*/ship/*",), exclude=("*/0", "*/1")))
    assert [item.task_id for item in chosen.items] == [f"depot/ship/{n}" for n in range(2, 6)]


def test_sets_share_a_plan_and_keep_their_environments() -> None:
    mixed = plan(DEPOT, TaskSet(attack=("none", "tool_knowledge"), env_args={"suite": "banking", "split": "dev"}))
    agentdojo = [item for item in mixed.items if item.task_id.startswith("banking")]
    assert {item.env_index for item in agentdojo} == {1, 2}
    assert {mixed.task(item).attack for item in agentdojo} == {None, "tool_knowledge"}


@pytest.mark.parametrize(
    ("task_sets", "message"),
    [
        ([DEPOT, DEPOT], "two task sets hold none/depot/ship/0#0"),
        ([dataclasses.replace(DEPOT, exclude=("*",))], "no task of toy/Depot-v0 is left"),
        ([dataclasses.replace(DEPOT, tasks=("nowhere",))], "no task of toy/Depot-v0 matches 'nowhere'"),
    ],
)
def test_plans_that_make_no_sense(task_sets: list[TaskSet], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*task_sets)


def test_what_may_not_be_trained_on_is_not() -> None:
    shop = TaskSet("toy/Parcels-v0")
    assert Plan([shop], 0).items
    with pytest.raises(FateGymError, match="not to be trained on"):
        plan(shop)
    with pytest.raises(FateGymError, match="not to be trained on"):
        plan(dataclasses.replace(shop, env_args={"purpose": "evaluation"}))


# Sampling.


def test_episodes_come_in_the_order_of_their_items() -> None:
    depot_plan = plan()
    items = [*reversed(depot_plan.items), dataclasses.replace(depot_plan.items[0])]
    episodes = asyncio.run(sample(depot_plan, load_agent("refuser"), items, concurrency=3))
    assert [episode.key for episode in episodes] == [item.key for item in items]


# Trajectories.

TURNS = st.lists(st.tuples(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), min_size=1)), min_size=1)


@given(TURNS)
def test_a_trajectory_is_its_turns_and_what_came_between(turns: list[tuple[list[int], list[int]]]) -> None:
    so_far: tuple[int, ...] = ()
    samples = []
    for between, written in turns:
        prompt = so_far + tuple(between)
        samples.append(Sample(prompt, tuple(written), tuple(-1.0 for _ in written)))
        so_far = prompt + tuple(written)
    joined = Trajectory.join(samples)
    assert joined is not None
    assert tuple(joined.prompt_ids + joined.completion_ids) == so_far
    assert joined.prompt_ids == turns[0][0]
    assert [token for token, wrote in zip(joined.completion_ids, joined.mask, strict=True) if wrote] == [
        token for _, written in turns for token in written
    ]
    assert [logprob != 0 for logprob in joined.logprobs] == [bool(wrote) for wrote in joined.mask]


def test_a_past_that_was_rewritten_is_no_trajectory() -> None:
    first, second = Sample((1, 2), (3,), (-0.1,)), Sample((1, 2, 4, 5), (6,), (-0.2,))
    assert Trajectory.join([first, second]) is None
    assert Trajectory.join([]) is None


def test_episodes_come_back_as_they_were_written() -> None:
    depot_plan = plan(dataclasses.replace(DEPOT, env_args={"mark": "depot"}))
    (bare,) = asyncio.run(sample(depot_plan, load_agent("oracle"), depot_plan.items[-1:]))
    assert (bare.trajectory, policy_tokens(bare)) == (None, 0)
    assert bare.key == depot_plan.items[-1].key
    assert Origin.of(bare.suite, bare.metadata).contaminated_by == ("depot",)
    samples = (Sample((1, 2), (3, 4), (-0.5, -0.25)), Sample((1, 2, 3, 4, 5), (6,), (-1.0,)))
    episode = dataclasses.replace(bare, trajectory=Trajectory.join(samples))
    assert policy_tokens(episode) == 3
    line = Fields(json.loads(json.dumps(episode_record(episode, more=1))), "a file")
    assert read_episode(line, "more") == episode
    with pytest.raises(RunCorruptError, match="a file: more"):
        read_episode(line)


def test_episodes_of_version_1_are_still_read() -> None:
    depot_plan = plan(dataclasses.replace(DEPOT, env_args={"mark": "depot"}))
    (now,) = asyncio.run(sample(depot_plan, load_agent("gullible"), depot_plan.items[-1:]))
    now = dataclasses.replace(now, trajectory=Trajectory([1], [2], [1], [-0.5]))
    same = ("key", "task_id", "seed", "mode", "suite", "attack", "cluster", "status", "ended", "verdict", "messages")
    written = now.to_json(tokens=True)
    old = {
        **{name: written[name] for name in (*same, "trajectory")},
        "variant": 0, "split": "train", "vector": list(vector(now)), "mask": list(mask(now)), "reached": True,
        "x_ids": [1], "contaminated_by": ["depot"], "failed": True,
    }  # fmt: skip
    read = read_episode(Fields(json.loads(json.dumps(old)), "a file"), "failed")
    for name in (*same, "trajectory", "injection_reached"):
        assert getattr(read, name) == getattr(now, name), name
    assert (vector(read), mask(read)) == (vector(now), mask(now))
    assert Origin.of(read.suite, read.metadata) == Origin("shop", "train", ("depot",))
    del old["seed"]
    with pytest.raises(RunCorruptError, match="a file: seed is missing"):
        read_episode(Fields(json.loads(json.dumps(old)), "a file"), "failed")


# Stage files.

SCHEMA = "fate-gym/test/1"


def records(*keys: str) -> list[dict[str, Any]]:
    return [{"key": key, "value": n} for n, key in enumerate(keys)]


def contents(stage: Stage) -> list[dict[str, Any]]:
    return [stage.header.values, *(record.values for record in stage.records)]


def test_a_stage_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "round" / "stage.jsonl"
    with StageFile(path, SCHEMA, {"policy": "p"}) as stage:
        stage.append(records("b")[0])
        stage.append({"key": "a", "value": 5})
    part = path.with_name("stage.jsonl.part")
    with part.open("ab") as file:
        file.write(b'{"key": "torn')
    with pytest.raises(RunError, match="run the stage that writes it"):
        read_stage(path, SCHEMA)
    with StageFile(path, SCHEMA, {"policy": "p"}) as stage:
        assert stage.finished is None
        assert set(stage.done) == {"a", "b"}
        stage.append({"key": "c", "value": 7})
        finished = stage.finish(["a", "b", "c", "errored"], {"errors": 1})
    assert not part.exists()
    assert [record.text("key") for record in finished.records] == ["a", "b", "c"]
    assert finished.counts == {"records": 3, "errors": 1}
    assert contents(read_stage(path, SCHEMA)) == contents(finished)
    with StageFile(path, SCHEMA, {"policy": "p"}) as stage:
        assert [record.values for record in stage.records] == contents(finished)[1:]
        with pytest.raises(RunError, match="not open for writing"):
            stage.append({"key": "d"})


def test_a_stage_of_other_inputs_is_refused_finished_or_not(tmp_path: Path) -> None:
    path = tmp_path / "stage.jsonl"
    with StageFile(path, SCHEMA, {"policy": "p", "seed": 0}) as stage:
        stage.append({"key": "a"})
    with (
        pytest.raises(RunMismatchError, match=r"other settings:\n  seed: stored 0, given nothing"),
        StageFile(path, SCHEMA, {"policy": "p"}),
    ):
        pass
    write_stage(path, SCHEMA, records("a"), inputs={"policy": "p"}, counts={})
    with pytest.raises(RunMismatchError, match=r"other settings:\n  policy: stored"):
        StageFile(path, SCHEMA, {"policy": "q"})


def test_equal_stages_are_equal_bytes_in_whatever_order_their_records_came(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    for path, keys in zip(paths, ("abc", "cab"), strict=True):
        with StageFile(path, SCHEMA, {}) as stage:
            for key in keys:
                stage.append({"key": key, "value": key})
            stage.finish(["a", "b", "c"], {})
    assert file_digest(paths[0]) == file_digest(paths[1])


def test_damaged_stage_files_are_told_from_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "stage.jsonl"
    write_stage(path, SCHEMA, records("a", "b"), inputs={}, counts={})
    with pytest.raises(RunCorruptError, match="schema"):
        read_stage(path, "fate-gym/other/1")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(RunCorruptError, match="has 1 records"):
        read_stage(path, SCHEMA)


def test_a_folder_s_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    digests = [folder_digest(tmp_path)]
    (tmp_path / "a").write_text("2")
    digests.append(folder_digest(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    digests.append(folder_digest(tmp_path))
    assert len(set(digests)) == 3
