"""A budget of sampled tokens: every method spends the same, an interrupted one no more, and what is left is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import depot
import pytest
import shop_policy
import yaml

from fate_gym.storage import records
from fate_gym.trainers.config import read_config
from fate_gym.trainers.fate import train
from fate_gym.trainers.methods import METHODS
from fate_gym.trainers.progress import ProgressReporter

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

BUDGET = 1000
ARMS = {"fate": [], "sft": ["select.rescore=false"], "rft": [], "grpo": []}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fate_gym.trainers.fate.draw", lambda rounds, folder: None)


@pytest.fixture
def run(policy: Path, tmp_path: Path) -> Any:
    def run(*overrides: str, out: str = "run", progress: ProgressReporter | None = None) -> dict[str, Any]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(depot.settings(policy, rounds=2, patience=2)))
        return train(read_config(str(path), [f"budget={BUDGET}", *overrides]), tmp_path / out, progress=progress)

    return run


@pytest.mark.parametrize(
    "method", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fate", "rft", "grpo"))]
)
def test_every_method_spends_the_budget_and_hardly_more(method: Any, run: Any) -> None:
    summary = run(f"method={method}", *ARMS[method])
    budget, rounds = summary["budget"], summary["rounds"][1:]
    assert budget["limit"] == BUDGET
    assert budget["tokens"] == pytest.approx(BUDGET, rel=0.05)
    assert budget["learner_tokens"] > 0
    # Half of it in each round, by the one stage that can take more.
    spent = {name: sum((row[name] or {}).get("tokens", 0) for row in rounds) for name in ("collected", "repaired")}
    spent["pfpo"] = budget["tokens"] - sum(spent.values())
    stage = {"collect": "collected", "repair": "repaired", "pfpo": "pfpo"}[METHODS[method].elastic]
    assert spent[stage] > 0
    of_first = sum((rounds[0][name] or {}).get("tokens", 0) for name in ("collected", "repaired", "pfpo"))
    assert of_first == pytest.approx(BUDGET / 2, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("fate", "pfpo"), ("sft", "repair"), ("rft", "collect")])
def test_an_interrupted_training_spends_no_more(method: str, stage: str, run: Any, tmp_path: Path) -> None:
    class Impatient(ProgressReporter):
        """Ends the training in the middle of its elastic stage."""

        def begin(self, name: str, total: int, done: int = 0) -> None:
            self.left = 3 if name == stage == "pfpo" else 60 if name == stage else None

        def advance(self, note: str = "") -> None:
            if self.left is not None:
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

    overrides = [f"method={method}", *ARMS[method], "rounds=1"]
    whole = run(*overrides, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(*overrides, progress=Impatient())
    resumed = run(*overrides)
    assert resumed["budget"]["tokens"] == whole["budget"]["tokens"]
    assert resumed["rounds"][1]["pfpo"] is None or (
        resumed["rounds"][1]["pfpo"]["steps"] == whole["rounds"][1]["pfpo"]["steps"]
    )
    sampled = [
        [json.dumps(line) for _, line in records(tmp_path / name / "round-1" / "collect.jsonl")]
        for name in ("whole", "run")
    ]
    assert len(sampled[0]) == len(sampled[1])


def test_repairs_stop_where_the_budget_ends_and_no_round_follows(run: Any) -> None:
    # Candidates are no part of what FATE gives the tokens that are left to; here they alone would take more than all.
    summary = run("method=fate", "repair.candidates=64", "select.rescore=false", "rounds=4", "patience=4")
    assert summary["budget"]["tokens"] == pytest.approx(BUDGET, rel=0.05)
    assert [row["pfpo"] for row in summary["rounds"][1:]] == [None] * (len(summary["rounds"]) - 1)
    assert len(summary["rounds"]) < 5


def test_who_runs_out_of_failures_leaves_tokens_unspent(run: Any) -> None:
    # No episode fails, so that there is nothing to repair.
    summary = run("method=sft", "collect.thresholds=[0, 0, 0, 0]")
    assert summary["budget"]["candidates"] == 0
    assert summary["budget"]["tokens"] < BUDGET / 2


def test_a_budget_that_the_first_stages_use_up_leaves_policy_optimisation_out(run: Any, tmp_path: Path) -> None:
    summary = run("method=grpo", "budget=20", "rounds=1")
    assert summary["rounds"][1]["pfpo"] is None
    assert json.loads((tmp_path / "run" / "round-1" / "pfpo" / "skipped.json").read_text()) == {
        "reason": "the budget is spent"
    }


def test_a_budget_of_nothing_is_refused(run: Any) -> None:
    with pytest.raises(ValueError, match="budget must be at least 1 token"):
        run("budget=0")
