"""The table of episodes, read by pyarrow and pandas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fate_gym.agents import load_agent
from fate_gym.errors import ProviderError
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import export_run, parquet
from fate_gym.rewards import AXES


def run_of(out: Path, agent: Any) -> RunFolder:
    config = EvalConfig(str(agent), env_args={"suite": "banking"}, attack=(None, "direct"), limit=3, out=out)
    asyncio.run(run_evaluation(config, load_agent(agent) if isinstance(agent, str) else agent))
    return RunFolder.read(out)


def test_a_row_an_episode_with_null_where_an_axis_is_not_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    run = run_of(tmp_path / "run", "gullible")
    written = export_run(run.path, "parquet")
    assert written.path == tmp_path / "run.parquet"
    table = pd.read_parquet(written.path).set_index("key")
    episodes = list(run.episodes())
    assert written.episodes == len(table) == len(episodes) == 6
    for episode in episodes:
        row = table.loc[episode.key]
        for name, axis in episode.verdict.axes.items():
            assert pd.isna(row[name]) if not axis.active else row[name] == axis.value
        assert row["calls"] == len(episode.calls)
        assert row["truncated"] == episode.truncated
        assert row["injection_reached"] == episode.injection_reached
    active = [e.verdict.security.value for e in episodes if e.verdict.security.active]
    assert table["security"].mean() == pytest.approx(sum(active) / len(active))
    settings = json.loads(pq.read_schema(written.path).metadata[b"fate_gym"])
    assert settings == run.manifest
    texts = {message["content"] for episode in episodes for message in episode.messages}
    assert not any(value in texts for column in table for value in table[column] if isinstance(value, str))
    monkeypatch.setattr(parquet, "_ROWS", 4)
    again = export_run(run.path, "parquet", tmp_path / "again.parquet")
    assert again.path.read_bytes() == written.path.read_bytes(), "the file depends on the rows that are dicts at a time"


def test_errors_are_rows_without_scores_and_usage_is_null_where_unknown(tmp_path: Path) -> None:
    import pandas as pd

    from fate_gym.rollout import Agent, Reply

    class Moody(Agent):
        name = "moody"

        def start(self, task: Any, seed: int) -> Any:
            self.broken = task.attack is not None
            return self

        async def act(self, observation: Any) -> Reply:
            if self.broken:
                raise ProviderError("out of order")
            return Reply("Done.", usage={"prompt_tokens": 7})

    run = run_of(tmp_path / "run", Moody())
    table = pd.read_parquet(export_run(run.path, "parquet").path)
    assert sorted(table["status"]) == ["ok"] * 3 + ["provider_error"] * 3
    failed = table[table["status"] != "ok"]
    assert failed[list(AXES)].isna().all(axis=None)
    assert failed["usage.prompt_tokens"].isna().all()
    assert set(table[table["status"] == "ok"]["usage.prompt_tokens"]) == {7.0}
