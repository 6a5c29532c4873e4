"""Runs of ours as Inspect's logs, read by Inspect's own reader and dataframe functions."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from fate_gym.agents import load_agent
from fate_gym.errors import UsageError
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import Exported, export_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Exported]:
    out = tmp_path_factory.mktemp("runs") / "run"
    config = EvalConfig("random", env="toy/Parcels-v0", repeats=2, out=out)
    asyncio.run(run_evaluation(config, load_agent("random")))
    return RunFolder.read(out), export_run(out, "inspect")


def test_inspect_reads_the_same_scores(exported: tuple[RunFolder, Exported]) -> None:
    from inspect_ai.log import read_eval_log

    run, written = exported
    log = read_eval_log(str(written.path))
    assert (log.status, log.eval.model, log.eval.task) == ("success", "random", "toy/Parcels-v0")
    samples = {f"{sample.id}#{sample.epoch - 1}": sample for sample in log.samples or []}
    episodes = {episode.key: episode for episode in run.episodes()}
    assert samples.keys() == episodes.keys()
    for key, episode in episodes.items():
        scores = samples[key].scores or {}
        active = {name: axis.value for name, axis in episode.verdict.axes.items() if axis.active}
        assert {name: score.as_float() for name, score in scores.items()} == active
        assert set(samples[key].metadata["not_scored"]) == set(episode.verdict.axes) - set(active)
        assert [message.role for message in samples[key].messages] == [message["role"] for message in episode.messages]
        requested = [call.function for m in samples[key].messages for call in getattr(m, "tool_calls", None) or []]
        assert requested == [call.name for call in episode.calls]
    assert log.results is not None
    for score in log.results.scores:
        values = [getattr(episode.verdict, score.name) for episode in episodes.values()]
        known = [axis.value for axis in values if axis.active]
        assert score.scored_samples == len(known)
        assert score.metrics["mean"].value == pytest.approx(sum(known) / len(known))


def test_inspects_dataframes_open_it(exported: tuple[RunFolder, Exported]) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    from inspect_ai.analysis import evals_df, messages_df, samples_df

    run, written = exported
    episodes = list(run.episodes())
    samples = samples_df(str(written.path))
    assert len(samples) == len(episodes)
    known = [episode.verdict.utility.value for episode in episodes if episode.verdict.utility.active]
    assert sorted(samples["score_utility"].dropna()) == pytest.approx(sorted(known))
    # Inspect takes the messages that its model has read or written: answers after the last turn are not among them.
    ends = [max(i for i, m in enumerate(e.messages) if m["role"] == "assistant") for e in episodes]
    assert len(messages_df(str(written.path))) == sum(end + 1 for end in ends)
    assert len(evals_df(str(written.path))) == 1


def test_the_package_is_asked_for_before_the_name(
    exported: tuple[RunFolder, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(UsageError, match="pip install"):
        export_run(exported[0].path, "inspect", tmp_path / "exp")


def test_another_name_is_refused(exported: tuple[RunFolder, Exported], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.eval"):
        export_run(exported[0].path, "inspect", tmp_path / "log.json")
