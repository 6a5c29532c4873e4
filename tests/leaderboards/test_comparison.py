"""Two runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import made_runs
import pytest
from small_runs import DOJO, MakeRun, edit_json, edit_line, loaded

from fate_gym.errors import UsageError
from fate_gym.leaderboards import LoadedRun, compare, load_runs
from fate_gym.leaderboards.comparison import Comparison
from fate_gym.leaderboards.terminal import comparison_notes

TOY = "toy/Parcels-v0"


@pytest.fixture(scope="module")
def refuser(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "refuser", "refuser", **DOJO)


def value(comparison: Comparison, name: str, suite: str = "all") -> tuple[float | None, float | None, int]:
    (found,) = (row.difference for row in comparison.rows if (row.column.name, row.suite) == (name, suite))
    return found.a, found.b, found.n


def test_every_metric_of_both_runs_is_compared(dojo_run: Path, refuser: Path) -> None:
    first, second = load_runs([dojo_run, refuser])
    found = compare(first, second)
    assert (found.a, found.b) == (first.run_id, second.run_id)
    assert (found.only_a, found.only_b, found.warnings) == (0, 0, ())
    for run, side in ((first, 0), (second, 1)):
        for group in run.summary["groups"]:
            for metric, estimate in group["metrics"].items():
                name = "benign validity" if (group["mode"], metric) == ("benign", "validity") else metric
                if estimate["value"] is None:
                    continue
                shown = value(found, name, group["suite"])
                assert shown[side] == pytest.approx(estimate["value"])
                assert shown[2] == estimate["n"]
    (utility,) = (r.difference for r in found.rows if (r.column.name, r.suite) == ("utility", "all"))
    assert utility.test == "mcnemar"


def test_only_what_both_have_is_compared(dojo_run: Path, refuser: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(refuser, tmp_path / "part"))
    lines = (part / "episodes.jsonl").read_text().splitlines(keepends=True)
    (part / "episodes.jsonl").write_text("".join(lines[:-3]))
    found = compare(loaded(dojo_run), loaded(part))
    assert (found.only_a, found.only_b) == (3, 0)


def test_runs_of_other_environments_or_tasks(dojo_run: Path, make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different environments"):
        compare(loaded(dojo_run), loaded(make_run(tmp_path / "toy", env=TOY)))
    other = make_run(tmp_path / "slack", "noop", env_args={"suite": ["slack"], "split": "dev"})
    with pytest.raises(UsageError, match="no episode in common"):
        compare(loaded(dojo_run), loaded(other))


def test_what_makes_them_less_comparable_is_said(dojo_run: Path, refuser: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(refuser, tmp_path / "changed"))

    def change(manifest: dict[str, Any]) -> None:
        manifest["versions"]["numpy"] = "0"
        manifest["config"]["env_args"]["max_turns"] = 3
        manifest["contaminated_by"] = "x"

    edit_json(changed / "manifest.json", change)
    record = json.loads((changed / "episodes.jsonl").read_text().splitlines()[0])
    failure = {**record, "key": "none/banking/user_task_99/none#0", "status": "env_error", "error": "x"}
    (changed / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    warnings = "\n".join(compare(loaded(dojo_run), loaded(changed)).warnings)
    for part in ("versions.numpy: A ", "env_args.max_turns: A nothing, B 3", "1 episodes errored", "trained on x"):
        assert part in warnings


def test_what_differs_in_provenance_is_named_once(dojo_run: Path, refuser: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(refuser, tmp_path / "changed"))

    def change(manifest: dict[str, Any]) -> None:
        # A run of more attacks says the same of its benchmark more often, which is no difference.
        manifest["provenance"] = [{**entry, "agentdojo": "9.9"} for entry in manifest["provenance"] for _ in range(2)]

    edit_json(changed / "manifest.json", change)
    found = compare(loaded(dojo_run), loaded(changed))
    (warning,) = found.warnings
    assert warning.startswith("the runs differ in provenance.agentdojo: A ")
    assert warning.endswith('B "9.9"')
    assert 'agent: A "gullible", B "refuser"' in found.settings


def test_options_that_nobody_gave_are_no_difference(dojo_run: Path, refuser: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(refuser, tmp_path / "changed"))
    edit_json(changed / "manifest.json", lambda manifest: manifest["config"].update(agent_args={"temperature": 1.0}))
    found = compare(loaded(dojo_run), loaded(changed))
    assert found.settings == ('agent: A "gullible", B "refuser"', "agent_args.temperature: A nothing, B 1.0")
    assert "n: episodes that both runs have." in comparison_notes(found)


def test_only_metrics_that_one_of_them_has_are_shown(dojo_run: Path, refuser: Path) -> None:
    for row in compare(loaded(dojo_run), loaded(refuser)).rows:
        assert row.difference.a is not None or row.difference.b is not None


def test_refusals_told_by_a_rule_and_by_a_judge_are_not_compared(dojo_run: Path, refuser: Path, tmp_path: Path) -> None:
    judged = Path(shutil.copytree(refuser, tmp_path / "judged"))
    edit_line(
        judged / "episodes.jsonl",
        lambda record: True,
        lambda record: record["verdict"]["over_refusal_control"].update(rule="judge:x"),
    )
    found = compare(loaded(dojo_run), loaded(judged))
    assert "not compared" in found.warnings[-1]
    assert {row.column.name for row in found.rows}.isdisjoint({"BRR", "refused"})


def test_an_inactive_axis_is_no_value(dojo_run: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(dojo_run, tmp_path / "changed"))
    edit_line(
        changed / "episodes.jsonl",
        lambda record: record["mode"] == "attacked",
        lambda record: record["verdict"]["utility"].update(active=False, value=0.0, error="KeyError"),
    )
    runs: list[LoadedRun] = load_runs([dojo_run, changed])
    found = compare(*runs)
    (row,) = (r.difference for r in found.rows if (r.column.name, r.suite) == ("TSR", "all"))
    assert row.b == pytest.approx(runs[1].summary["groups"][0]["metrics"]["TSR"]["value"])


def test_rows_are_in_the_order_of_modes_attacks_and_suites(tmp_path: Path) -> None:
    episodes = [
        made_runs.record(f"{suite}/user_task_1/injection_task_0", attack=attack, suite=suite, key=f"{attack}/{suite}#0")
        for attack in ("zeta", "alpha")
        for suite in ("work", "bank")
    ]
    episodes.append(made_runs.benign("bank/user_task_1/none", suite="bank"))
    a, b = (made_runs.write_run(tmp_path / name, episodes, agent=name, attack=None, tasks=None) for name in "ab")
    rows = compare(loaded(a), loaded(b)).rows
    groups = list(dict.fromkeys((row.attack, row.suite) for row in rows))
    attacked = [(attack, suite) for attack in ("alpha", "zeta") for suite in ("all", "bank", "work")]
    assert groups == [*attacked, *((None, suite) for suite in ("all", "bank"))]
