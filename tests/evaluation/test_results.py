"""What a run knows of its episodes without reading them again is what reading them says."""

from __future__ import annotations

import random
from pathlib import Path

import made_runs
import numpy as np
import pytest
from made_runs import Record, benign, record

from fate_gym import load_run
from fate_gym.evaluation.results import Result


def made(seed: int) -> list[Record]:
    """Episodes in the order in which they happened to end, some of them alike."""
    rng = random.Random(seed)
    tasks = [f"shop/user_task_{i}/injection_task_{j}" for i in range(12) for j in range(2)]
    episodes = [
        record(task, key=f"attack/{task}#{i}", repeat=i, values=(rng.choice([0, 1, None]), 1, 1, rng.random()))
        for task in tasks
        for i in range(3)
    ]
    episodes += [benign(f"bank/user_task_{i}", suite="bank", values=(None, i % 2, 1, 1)) for i in range(12)]
    rng.shuffle(episodes)
    return episodes[: -rng.randrange(20)]


def test_results_stand_in_the_order_of_the_episodes(tmp_path: Path) -> None:
    episodes = made(0)
    # Of a failure that came again the last attempt counts, of one that succeeded none.
    failed = [entry | {"status": "env_error", "error": "E"} for entry in made(1)[:9]]
    again = [entry | {"status": "provider_error", "truncated": True} for entry in failed[3:6]]
    scored = {entry["key"] for entry in failed[:6]}
    episodes = [entry for entry in episodes if entry["key"] not in scored]
    run = load_run(made_runs.write_run(tmp_path / "run", episodes, failures=[*failed, *again]))
    assert 0 < len(run.failures) < len(failed)
    for part in (run.episodes, run.failures):
        whole = list(part)
        assert [part.results[i] for i in part.each_result] == [Result.of(episode) for episode in whole]
        assert len(set(part.results)) == len(part.results)
        chosen = np.arange(len(part)) % 3 == 1
        some = part.where(chosen)
        assert list(some) == whole[1::3]
        assert some.keys == part.keys[1::3]
        assert some.each_result.tolist() == part.each_result[1::3].tolist()
        assert list(part.of_each(reversed(part.keys))) == whole[::-1]
        with pytest.raises(KeyError, match=part.keys[0]):
            some.of_each([*some.keys, part.keys[0]])


def test_two_runs_pair_the_results_of_equal_keys(tmp_path: Path) -> None:
    one, other = (load_run(made_runs.write_run(tmp_path / str(seed), made(seed))).episodes for seed in (2, 3))
    a, b = one.paired_results(other)
    first, second = ({episode.key: Result.of(episode) for episode in part} for part in (one, other))
    both = sorted(first.keys() & second.keys())
    found = sorted(map(repr, zip([one.results[i] for i in a], [other.results[i] for i in b], strict=True)))
    assert 0 < len(both) < min(len(one), len(other))
    assert found == sorted(repr((first[key], second[key])) for key in both)
