"""What players hand over of an episode is all that a run needs of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from small_episodes import make_episode, verdict_of

from fate_gym import evaluate
from fate_gym.episode import Trajectory
from fate_gym.evaluation import store
from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.results import Result
from fate_gym.rewards import AxisVerdict


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": verdict_of([0.25, 1, 0, 0.5], [True, False, True, True]), "attack": "direct", "mode": "attacked"},
        {"status": "judge_error", "error": "asleep", "seconds": {"total": None, "agent": None}},
        {"usage": {"prompt_tokens": 3, "left_out": 1}, "actions": [{"finish_reason": "content_filter"}]},
        {"task_id": "shop/\x7f", "suite": "Bücher", "cluster": "\u2028", "truncated": True},
        {"suite": "\ud800", "cluster": "\udfff"},
        {
            "mode": "harmful",
            "verdict": dataclasses.replace(
                verdict_of([0.5, 1, 1, 1]),
                security=AxisVerdict.scored(0.5, "rubric", measures={"harm_low": 0.5, "harm_high": 0.5}),
            ),
        },
    ],
)
def test_what_is_counted_is_what_a_reader_of_the_line_counts(fields: dict[str, Any]) -> None:
    episode = make_episode(**fields)
    finished = Finished.of(episode)
    read = finished.episode()
    assert finished.result == Result.of(read)
    assert (finished.usage, finished.seconds) == (read.usage, read.seconds["total"])
    assert finished.acted == bool(read.actions)
    assert finished.key == read.key


def test_token_ids_stay_where_they_were_sampled() -> None:
    sampled = make_episode(trajectory=Trajectory([1], [2], [1], [-0.5]))
    assert Finished.of(sampled).episode() == make_episode()


@pytest.mark.parametrize("fields", [{"key": "\ud800"}, {"metadata": {"temperature": float("nan")}}])
def test_what_cannot_be_written_is_refused_where_it_was_played(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"valid Unicode|not JSON compliant"):
        Finished.of(make_episode(**fields))


def test_an_evaluation_reads_nothing_of_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    placed = store.placed_records

    def counted(path: Path, *args: Any) -> Any:
        for place, record in placed(path, *args):
            read.append(record["key"])
            yield place, record

    monkeypatch.setattr(store, "placed_records", counted)
    first = evaluate("oracle", suite="slack", limit=3, out=tmp_path)
    assert first.summary["episodes"]["scored"] == 3
    assert read == []
    evaluate("oracle", suite="slack", limit=5, out=tmp_path)
    # Those of the first start alone.
    assert sorted(read) == sorted(first.episodes.keys)
