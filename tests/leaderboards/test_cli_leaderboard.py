"""`fate-gym leaderboard` as people use it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import DOJO, MakeRun, edit_json, edit_line

from fate_gym.cli import main
from fate_gym.cli.main import main as entry
from fate_gym.leaderboards.results import write_results


@pytest.fixture(scope="module")
def noop(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "noop", "noop", **DOJO)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["leaderboard", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def test_build_writes_what_machines_read(run: Run, dojo_run: Path, noop: Path, tmp_path: Path) -> None:
    code, out, _ = run("build", dojo_run, noop, "--out", tmp_path / "site")
    assert code == 0
    assert out.endswith(f"2 runs, 4 rows: open {tmp_path / 'site' / 'index.html'}\n")
    assert (tmp_path / "site" / "index.html").exists()
    (board,) = json.loads((tmp_path / "site" / "leaderboard.json").read_text())["boards"]
    with (tmp_path / "site" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["agent"] for row in rows] == [row["agent"] for row in board["rows"]]


def test_wrong_usage(run: Run, tmp_path: Path) -> None:
    assert run("build", tmp_path)[0] == 2
    assert run("verify", tmp_path)[0] == 2
    assert run("compare", tmp_path, tmp_path)[0] == 2
    code, _, err = run("results", "--out", tmp_path / "out", "--suite", "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert entry(["leaderboard"]) == 2


def test_verify_of_an_honest_run(run: Run, dojo_run: Path) -> None:
    code, out, _ = run("verify", dojo_run)
    assert code == 0
    assert "cannot be known: which model wrote the actions" in out
    assert out.strip().endswith("the run agrees")
    code, out, _ = run("verify", dojo_run, "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["differences"]) == (0, True, [])


def test_verify_says_line_by_line_what_differs(run: Run, copied: Path) -> None:
    def forge(record: dict[str, Any]) -> None:
        record["verdict"]["validity"]["value"] = 0.5
        record["messages"][-1]["content"] = "\x1b[2J\u202e" + "x" * 500

    key = edit_line(copied / "episodes.jsonl", lambda record: True, forge)
    code, out, _ = run("verify", copied)
    assert code == 1
    assert f"{key}: verdict.validity.value: stored 0.5, recomputed 1.0" in out
    assert "\x1b" not in out
    assert "DIFFERS in" in out
    (copied / "episodes.jsonl").write_text("[]\n" * 150)
    code, out, _ = run("verify", copied)
    assert code == 1
    assert "more (--json has all)" in out


def test_verify_counts_what_a_judge_scored(
    run: Run, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from fate_gym.verifiers.refusal import Judgement\nstrict = lambda transcript: Judgement(False, 'strict')\n"
    (tmp_path / "cli_judge.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    judged = {**DOJO["env_args"], "refusal_judge": "cli_judge:strict"}
    code, out, _ = run("verify", make_run(tmp_path / "run", "noop", env_args=judged))
    assert code == 0
    assert "over_refusal_control of" in out


def test_compare_prints_differences(run: Run, dojo_run: Path, noop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("compare", dojo_run, noop)
    assert code == 0
    for part in ("attack: important_instructions", "without attack", "ASR ↓", "better", "worse", "McNemar"):
        assert part in out
    assert "banking" not in out
    assert max(len(line) for line in out.splitlines()) <= 80
    _, out, _ = run("compare", dojo_run, noop, "--all")
    assert "without attack, banking" in out
    _, out, _ = run("compare", dojo_run, noop, "--json")
    report = json.loads(out)
    assert {row["difference"]["test"] for row in report["rows"]} >= {"mcnemar", "clustered bootstrap"}


def test_compare_shows_hostile_names_as_text(run: Run, dojo_run: Path, noop: Path, tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(noop, tmp_path / "noop"))
    edit_json(hostile / "manifest.json", lambda m: m.update(contaminated_by="[red]\x1b]8;;http://x\x07\u202e"))
    lines = (hostile / "episodes.jsonl").read_text().splitlines(keepends=True)
    (hostile / "episodes.jsonl").write_text("".join(lines[1:]))
    _, out, _ = run("compare", hostile, dojo_run)
    assert "[red]" in out
    assert not set("\x1b\x07\u202e") & set(out)
    assert "Episodes of one run alone, in no row: A 0, B 1." in out


def test_compare_where_there_is_nothing_on_one_side(run: Run, dojo_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dojo_run, tmp_path / "other"))
    lines = [json.loads(line) for line in (other / "episodes.jsonl").read_text().splitlines()]
    for record in lines:
        record["verdict"]["utility"]["active"] = False
    (other / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    code, out, _ = run("compare", dojo_run, other)
    (line,) = (line for line in out.splitlines() if "TSR" in line)
    assert code == 0
    assert line.split()[3:6] == ["-", "-", "-"]


RESULTS = Path(__file__).parents[2] / "leaderboards" / "results"


def test_results_hold_summaries_and_nothing_else(run: Run, tmp_path: Path) -> None:
    code, out, err = run("results", "--out", tmp_path, "--suite", "slack", "--attack", "direct")
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "agentdojo.json"), str(tmp_path / "agentdojo.md")]
    assert "oracle: 126 episodes" in err
    made = json.loads((tmp_path / "agentdojo.json").read_text())
    kept = json.loads((RESULTS / "agentdojo.json").read_text())
    assert made["schema"] == kept["schema"]
    assert {key for row in made["rows"] for key in row} == {key for row in kept["rows"] for key in row}

    def slack(table: dict[str, Any]) -> list[str]:
        chosen = [row for row in table["rows"] if row["suite"] == "slack" and row["attack"] in (None, "direct")]
        return sorted(json.dumps(row) for row in chosen)

    # The kept file is what the command makes today.
    assert slack(made) == slack(kept) != []


def test_kept_results_are_complete_and_small() -> None:
    from fate_gym.benchmarks.agentdojo.attacks import attack_names

    kept = json.loads((RESULTS / "agentdojo.json").read_text())
    have = {(row["agent"], row["attack"], row["suite"]) for row in kept["rows"]}
    suites = ("all", "banking", "slack", "travel", "workspace")
    agents = ("oracle", "gullible", "refuser", "noop", "random")
    assert have == {(a, attack, s) for a in agents for attack in (None, *attack_names()) for s in suites}
    assert not any(row["errors"] for row in kept["rows"])
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 300_000


def test_results_of_the_same_agents_are_the_same_bytes(tmp_path: Path) -> None:
    written = [
        write_results(tmp_path / name, suites=["slack"], attacks=[], agents=["random", "noop"]) for name in ("a", "b")
    ]
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]


def test_reported_numbers_are_well_formed_and_name_their_source() -> None:
    from fate_gym.evaluation.config import read_settings

    reported = read_settings(str(RESULTS / "reported.yaml"))
    assert reported["schema"] == "fate-gym/reported/1"
    for table in reported["tables"]:
        assert table["source"]
        assert table["unit"] in ("share", "per cent")
        for row in table["rows"]:
            assert len(row["values"]) == len(table["metrics"])
            limit = 1 if table["unit"] == "share" else 100
            assert all(value is None or 0 <= value <= limit for value in row["values"])
