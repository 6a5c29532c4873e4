"""Public logs graded here: figures alone, ours beside the recorded ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_logs import answers, asks, log, says, write

from fate_gym.cli.main import main
from fate_gym.errors import RunError
from fate_gym.importing import import_runs
from fate_gym.importing.agentdojo import AgentDojoReader
from fate_gym.leaderboards.regraded import kept, regrade, to_json
from fate_gym.leaderboards.site.reported import regraded_tables

ANSWERED = "What the tool answered, which no figure may hold."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regraded")
    calling = asks("get_balance", {})
    logs = [
        log(
            calling,
            answers(ANSWERED),
            says("Done."),
            goal="injection_task_0",
            user=f"user_task_{i}",
            utility=i == 0,
            security=False,
        )
        for i in range(4)
    ]
    write(folder / "logs", *logs, log(says("Done."), evaluation_timestamp="2025-11-26 02:50:33"))
    import_runs(AgentDojoReader([folder / "logs"], model="Model"), folder / "run", source="a source at abc, MIT")
    return folder / "run"


def test_our_rates_stand_beside_the_recorded_ones(run: Path) -> None:
    attacked, benign = regrade([run])
    assert (attacked.agent, attacked.attack, attacked.n, attacked.version) == ("Model", "direct", 4, "v1.2.2")
    assert attacked.recorded == {"ASR": 0.0, "TSR": 0.25}
    assert [attacked.ours[name][0] for name in ("ASR", "TSR")] == [0.0, 0.0]
    assert attacked.differences == {"tools answered otherwise": 1}
    assert (benign.recorded, benign.written, benign.is_old) == ({"utility": 0.0}, "2025-11 to 2025-11", False)


def test_figures_hold_no_text_of_a_log(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "regraded.json"
    assert main(["leaderboard", "regraded", str(run), "--out", str(out)]) == 0
    assert out.read_text() == to_json(regrade([run]))
    assert ANSWERED not in out.read_text()
    assert "a source at abc, MIT" in capsys.readouterr().out


def test_what_the_package_ships_with_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = kept()
    assert len({row.source for row in rows}) >= 3
    assert all(row.n > 0 and row.recorded.keys() == row.ours.keys() for row in rows)
    assert json.loads(to_json(rows))["schema"] == "fate-gym/regraded/1"
    assert main(["leaderboard", "regraded"]) == 0
    assert "(old)" in capsys.readouterr().out
    tables = regraded_tables("fate/AgentDojo-v0")
    assert sum(len(table.rows) for table in tables) == sum(row.env == "fate/AgentDojo-v0" for row in rows)
    assert all(len(values) == len(table.metrics) for table in tables for _, _, values in table.rows)


def test_a_run_of_ours_was_recorded_by_nobody_else(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["imported"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest) + "\n")
    (tmp_path / "episodes.jsonl").write_bytes((run / "episodes.jsonl").read_bytes())
    with pytest.raises(RunError, match="was not imported"):
        regrade([tmp_path])
