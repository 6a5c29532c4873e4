"""Studies: arms are settings, replicates differ in fold and seed, any order will do, and the report is the results'."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import depot
import pytest
import shop_policy
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from fate_gym.errors import FateGymError, RunError
from fate_gym.trainers.algorithms.advantages import RULES
from fate_gym.trainers.config import TrainConfig, read_config
from fate_gym.trainers.gate import NotCompetentError
from fate_gym.trainers.progress import ProgressReporter
from fate_gym.trainers.study.arms import ARMS, BASELINES
from fate_gym.trainers.study.hypotheses import Hypothesis, judge
from fate_gym.trainers.study.plan import Replicate, Study, read_study
from fate_gym.trainers.study.publish import publish
from fate_gym.trainers.study.report import report_of
from fate_gym.trainers.study.report_text import markdown, terminal_tables
from fate_gym.trainers.study.results import read_results
from fate_gym.trainers.study.statistics import mean, mean_share, paired, sign_flip_p
from fate_gym.trainers.study.study import run_study

pytestmark = pytest.mark.usefixtures("one_thread")

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
PUBLISHED = sorted(path.parent.name for path in EVIDENCE.glob("*/study.json"))
STUDIES = ("fate-tiny-study", "fate-tiny-conflict")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture
def study_of(policy: Path, tmp_path: Path) -> Any:
    def make(*overrides: str, **section: Any) -> Study:
        settings = depot.settings(policy)
        settings["evaluate"] = {
            "dev": DEPOT,
            "main": "held",
            "test": {"held": DEPOT, "benign": {**DEPOT, "attack": None}},
        }
        if section:
            settings["study"] = section
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(settings))
        return read_study(str(path), overrides)

    return make


HYPOTHESIS = {"name": "P1", "test": "held", "metric": "ASR", "arm": "fate", "sense": "at_most"}
DEPOT: dict[str, Any] = {"env": "toy/Depot-v0", "tasks": ["depot/*/0"]}


# What is trained.


def test_every_arm_is_a_configuration_of_its_own(study_of: Any) -> None:
    study = study_of()
    configs = {arm: study.config(Replicate(7), arm) for arm in ARMS}
    assert {made.seed for made in configs.values()} == {7}
    distinct = {json.dumps(made.to_json(), sort_keys=True) for name, made in configs.items() if name != "fate"}
    assert len(distinct) == len(ARMS) - 1
    assert configs["fate"] in [configs[f"fate-{rule}"] for rule in RULES], "the default is one of the rules"
    assert {made.pfpo.rule for made in configs.values() if made.pfpo} == set(RULES)
    assert {configs[name].method for name in BASELINES} == {made.method for made in configs.values()}


def test_an_arm_s_own_settings_go_last(study_of: Any) -> None:
    assert study_of("method=sft").config(Replicate(), "dpo").method == "dpo"


def test_without_a_section_a_study_is_one_replicate_with_the_training_s_seed(study_of: Any) -> None:
    study = study_of("seed=5")
    assert study.trainings((), ()) == [(Replicate(5), arm) for arm in BASELINES]
    assert Replicate(5).name == "seed5"


def test_arms_come_replicate_by_replicate_and_ablations_last(study_of: Any) -> None:
    replicates = [{"seed": seed} for seed in (1, 2, 3)]
    study = study_of(replicates=replicates, arms=["fate", "sft"], ablations=["no-anchor"], ablation_replicates=2)
    planned = [(replicate.seed, arm) for replicate, arm in study.trainings((), ())]
    assert planned == [(seed, arm) for seed in (1, 2, 3) for arm in ("fate", "sft")] + [
        (1, "no-anchor"),
        (2, "no-anchor"),
    ]
    third = study.settings.replicates[2:]
    assert study.trainings(third, ()) == [(third[0], "fate"), (third[0], "sft")]
    assert study.trainings(third, ("no-anchor",)) == [(third[0], "no-anchor")]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"arms": ["fate", "ppo"]}, "no arm 'ppo'; there are: fate"),
        ({"arms": ["fate", "fate"]}, "each once"),
        ({"arms": ["fate"], "ablations": ["fate"]}, "each once"),
        ({"arms": []}, "not none"),
        ({"replicates": []}, "not none"),
        ({"replicates": [{"seed": 1}, {"seed": 1}]}, "seed1, seed1"),
        ({"hypotheses": [{**HYPOTHESIS, "metric": "asr"}]}, "no metric 'asr'; there are: ASR"),
        ({"hypotheses": [{**HYPOTHESIS, "than": "ppo"}]}, "no arm 'ppo'; there are: base, fate"),
        ({"hypotheses": [{**HYPOTHESIS, "sense": "below"}]}, "sense must be one of at_most, at_least"),
        ({"replicate": [{"seed": 1}]}, r"unknown setting study.replicate; did you mean study.replicates\?"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(study_of: Any, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study_of(**section)


def test_an_arm_that_is_none_is_refused_before_anything_is_trained(study_of: Any) -> None:
    with pytest.raises(ValueError, match="no arm 'ppo'"):
        study_of().trainings((), ("ppo",))


def test_a_study_is_no_single_training() -> None:
    with pytest.raises(ValueError, match="fate-gym train study --config fate-tiny-study"):
        read_config("fate-tiny-study")


@pytest.mark.parametrize("name", STUDIES)
def test_the_shipped_studies_differ_by_replicate_in_fold_and_seed_alone(name: str) -> None:
    study = read_study(name)
    first, second = study.settings.replicates[:2]
    one, other = (study.config(replicate, "fate") for replicate in (first, second))
    base = one.base
    assert base is not None
    task_sets = [*one.train, one.evaluate.dev, *one.evaluate.test.values()]
    assert all(("fold" in made.env_args) == ("split" in made.env_args) for made in task_sets)
    assert {made.env_args["fold"] for made in task_sets if "split" in made.env_args} == {first.fold, base.fold}
    assert base.seed == one.seed == first.seed
    assert 0 not in {replicate.fold for replicate in study.settings.replicates}, "fold 0 chose the settings"
    same = dataclasses.replace(
        one, seed=0, base=other.base, train=other.train, evaluate=other.evaluate
    ) == dataclasses.replace(other, seed=0)
    assert same
    assert one.budget
    assert one.patience >= one.rounds, "a training that stops early would leave tokens unspent"


def test_both_studies_train_in_the_same_way() -> None:
    one, other = (dict(read_study(name).training) for name in STUDIES)
    assert one.pop("base") != other.pop("base")
    assert one == other


# Running it.


def summary_of(asr: float, **budget: Any) -> dict[str, Any]:
    dev = row(asr) | {"hypervolume": {"value": 0.5}}
    first = {"collected": {"tokens": 100}, "repaired": {"tokens": 50}, "pfpo": None, "selected": None, "dev": dev}
    return {
        "main": "held",
        "after": row(asr),
        "splits": {"benign": {"after": benign()}},
        "best": {"round": 1},
        "rounds": [{"round": 0, "dev": dev}, {"round": 1, **first}],
        "budget": {
            "rollouts": 90,
            "candidates": 10,
            "tokens": 950,
            "learner_tokens": 4000,
            "limit": 1000,
            "seconds": 60.0,
        }
        | budget,
    }


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": 60}


def row(asr: float) -> dict[str, Any]:
    return {"ASR": estimate(asr), "TSR": estimate(1 - asr), "reached": estimate(1.0), "n": 60, "errors": 0}


def benign() -> dict[str, Any]:
    return {"earned_utility": estimate(0.9), "BRR": estimate(0.1), "n": 30, "errors": 0}


@pytest.fixture
def run(study_of: Any, tmp_path: Path) -> Any:
    """Runs a study of two replicates; the policies are scored for real, the trainings are made up."""
    trained: list[str] = []

    def run(*overrides: str, arms: Sequence[str] = (), stop: Any = None) -> tuple[list[str], list[str]]:
        study = study_of(*overrides, replicates=[{"seed": 1}, {"seed": 2}], arms=["fate", "dpo", "rft"])

        def train(config: TrainConfig, out: Path, shared: Path) -> dict[str, Any]:
            assert out == shared / "arms" / out.name
            assert (shared / "eval" / "before-held" / "summary.json").exists()
            trained.append(f"{shared.name} {out.name}")
            if stop:
                stop(config)
            return summary_of(0.1 if config.method == "fate" else 0.2 + 0.1 * config.seed)

        out = tmp_path / "out"
        problems = run_study(study, study.trainings((), arms), out, train, ProgressReporter())
        return problems, trained

    return run


def test_each_arm_trains_once_whatever_the_order(run: Any, tmp_path: Path) -> None:
    assert run(arms=["rft"]) == ([], ["seed1 rft", "seed2 rft"])
    everything = ["seed1 rft", "seed2 rft", "seed1 fate", "seed1 dpo", "seed2 fate", "seed2 dpo"]
    assert run() == ([], everything)
    assert run() == ([], everything)
    results = {path.name for path in (tmp_path / "out" / "results").iterdir()}
    assert results == {f"seed{seed}-{arm}.json" for seed in (1, 2) for arm in ("base", "fate", "dpo", "rft")}


def test_a_failure_stops_no_other_arm_and_is_tried_again(run: Any) -> None:
    def stop(config: TrainConfig) -> None:
        if config.method == "dpo" and config.seed == 1:
            raise FateGymError("no pair [to learn] from")

    problems, trained = run(stop=stop)
    assert problems == ["seed1, dpo: no pair [to learn] from"]
    assert trained[-1] == "seed2 rft"
    assert run()[1][len(trained) - 6 :].count("seed1 dpo") == 2


def test_a_base_that_fails_the_gate_ends_its_replicate_alone(run: Any) -> None:
    def stop(config: TrainConfig) -> None:
        if config.seed == 1:
            raise NotCompetentError("utility 0.10")

    problems, trained = run(stop=stop)
    assert problems == ["seed1, fate: utility 0.10"]
    assert trained == ["seed1 fate", "seed2 fate", "seed2 dpo", "seed2 rft"]


def test_an_interrupt_keeps_what_was_done(run: Any, tmp_path: Path) -> None:
    def stop(config: TrainConfig) -> None:
        if config.method == "rft":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop=stop)
    assert (tmp_path / "out" / "results" / "seed1-dpo.json").exists()
    assert not (tmp_path / "out" / "results" / "seed1-rft.json").exists()


def test_results_of_other_settings_are_not_taken_for_these(run: Any) -> None:
    run(arms=["fate"])
    problems, _ = run("repair.candidates=7", arms=["fate"])
    assert len(problems) == 2
    assert "repair.candidates: stored 3, given 7" in problems[0]
    # The speed of a machine is no part of a result.
    assert run("concurrency=2", arms=["fate"])[0] == []


def test_a_result_depends_on_no_setting_that_its_method_never_reads(run: Any) -> None:
    run(arms=["fate"])
    problems, trained = run("dpo.epochs=3")
    assert problems == []
    problems, again = run("dpo.epochs=4")
    assert again == trained
    assert [problem.split(":")[0] for problem in problems] == ["seed1, dpo", "seed2, dpo"]
    assert "dpo.epochs: stored 3, given 4" in problems[0]


# What it says.


def test_no_bound_of_a_share_is_one_that_no_share_can_have() -> None:
    assert (mean([0.0, 0.02]).low or 0) < 0
    cut = mean_share([0.0, 0.02])
    assert (cut.mean, cut.low, cut.n) == (pytest.approx(0.01), 0.0, 2)
    assert cut.high == mean([0.0, 0.02]).high
    assert mean_share([1.0, 0.9]).high == 1.0
    assert mean_share([0.5]) == mean([0.5])


def test_means_and_p_are_scipys() -> None:
    values = [0.1, 0.3, 0.2, 0.25, 0.05, 0.4]
    one = mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (one.low, one.high) == pytest.approx(tuple(expected))
    assert mean([0.3]).low is None
    differences = [-0.1, -0.2, 0.05, -0.3, -0.15, -0.02]
    exact = stats.permutation_test(
        (differences,), lambda sample, axis: sample.mean(axis), permutation_type="samples", vectorized=True
    )
    assert sign_flip_p(differences) == pytest.approx(exact.pvalue)


def test_six_replicates_are_the_least_that_can_show_something() -> None:
    assert sign_flip_p([-1.0] * 5) == 2 / 2**5
    assert sign_flip_p([-1.0] * 6) == 2 / 2**6 < 0.05
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0] * 17) is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_p_is_a_probability_and_ignores_the_direction(values: list[float]) -> None:
    p = sign_flip_p(values)
    assert p is not None
    assert 2 / 2 ** len(values) <= p <= 1
    assert sign_flip_p([-value for value in values]) == pytest.approx(p)


def test_only_replicates_that_both_arms_have_are_paired() -> None:
    found = paired({"a": 0.1, "b": 0.2, "c": 0.9}, {"b": 0.5, "a": 0.3, "d": 0.0})
    assert found is not None
    assert found.difference.mean == pytest.approx(-0.25)
    assert found.difference.n == 2
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_the_report_pairs_averages_and_counts(run: Any, tmp_path: Path) -> None:
    run()
    report = report_of(read_results(tmp_path / "out" / "results"))
    scores, differences = report["scores"]["held"], report["differences"]["held"]
    assert scores["fate"]["ASR"]["mean"] == pytest.approx(0.1)
    assert scores["rft"]["ASR"]["values"] == {"seed1": pytest.approx(0.3), "seed2": pytest.approx(0.4)}
    # (1 - ASR) TSR (1 - BRR), and the refusals are those of the benign tasks.
    assert scores["fate"]["hypervolume"]["mean"] == pytest.approx(0.9 * 0.9 * 0.9, abs=1e-3)
    assert differences["rft"]["ASR"]["mean"] == pytest.approx(-0.25)
    assert differences["rft"]["ASR"]["p"] == 0.5
    assert report["costs"]["fate"]["unspent"] == 50
    assert report["covered"]["held"]["tasks"] == 2
    assert report["replicates"]["base"] == ["seed1", "seed2"]


def asr(arm: str, *values: float) -> dict[str, Any]:
    return {arm: {"pair": {"ASR": {f"seed{seed}": value for seed, value in enumerate(values)}}}}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0.02, 0.03, 0.04), "held"),
        ((0.30, 0.31, 0.32), "refuted"),
        ((0.02, 0.30, 0.04), "undecided"),
        ((0.02,), "undecided"),
    ],
)
def test_a_statement_holds_where_its_whole_interval_says_so(values: tuple[float, ...], found: str) -> None:
    tenth = Hypothesis("P1", test="pair", metric="ASR", arm="fate", sense="at_most", times=0.1)
    arms = {**asr("fate", *values), **asr("base", 0.5, 0.6, 0.7)}
    judgement = judge(tenth, arms)
    assert judgement
    assert judgement.found == found
    if len(values) == 3:
        assert judgement.margin.mean == pytest.approx(0.06 - sum(values) / 3)
    # What is at most something is turned round where it is at least that.
    opposite = judge(dataclasses.replace(tenth, sense="at_least"), arms)
    assert opposite
    assert opposite.found == {"held": "refuted", "refuted": "held"}.get(found, found)
    assert judge(dataclasses.replace(tenth, arm="rft"), arms) is None


def test_a_statement_says_itself_and_stands_in_the_report(run: Any, tmp_path: Path) -> None:
    run()
    worse = Hypothesis(
        "P2", test="held", metric="TSR", arm="fate", sense="at_least", than="rft", plus=-0.05, expected="undecided"
    )
    missing = dataclasses.replace(worse, than="gdpo")
    report = report_of(read_results(tmp_path / "out" / "results"), [missing, worse])
    assert len(report["hypotheses"]) == 1, "what no replicate bears on is not found undecided"
    assert report["hypotheses"][0]["statement"] == "held: TSR of fate >= rft - 5 points"
    assert report["hypotheses"][0]["margin"]["mean"] == pytest.approx(0.3)
    assert "| P2. held: TSR of fate >= rft - 5 points | 2 | +30.0 (-34 to 94) | undecided | undecided |" in markdown(
        report
    )
    assert str(dataclasses.replace(worse, than="base", times=0.5, plus=0)) == "held: TSR of fate >= 50 % of base"


def test_the_report_is_made_from_the_results_alone(run: Any, tmp_path: Path) -> None:
    run()
    first = publish(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "results").rename(tmp_path / "elsewhere" / "results")
    assert publish(tmp_path / "elsewhere") == first
    for name in ("study.json", "study.md", "plane.png", "differences.png", "curves.png"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert (tmp_path / "out" / "plane.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_what_is_there_fits_80_columns(run: Any, tmp_path: Path) -> None:
    run(arms=["rft"])
    report = report_of(read_results(tmp_path / "out" / "results"))
    console = Console(width=80)
    with console.capture() as captured:
        for table in terminal_tables(report):
            console.print(table)
    lines = captured.get().splitlines()
    assert any(line.split()[:3] == ["rft", "2", "35.0"] for line in lines)
    assert "| before | 2 |" in markdown(report)
    assert "sign-flip" in markdown(report)


def test_a_folder_without_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no result of a study"):
        publish(tmp_path)


def test_results_of_an_unknown_arm_are_told(run: Any, tmp_path: Path) -> None:
    run(arms=["rft"])
    path = tmp_path / "out" / "results" / "seed1-rft.json"
    path.write_text(path.read_text().replace('"arm": "rft"', '"arm": "ppo"'))
    with pytest.raises(RunError, match="arms that this version does not have: ppo"):
        publish(tmp_path / "out")


@pytest.mark.parametrize("study", PUBLISHED)
def test_published_trainings_cost_the_same(study: str) -> None:
    for result in read_results(EVIDENCE / study / "results"):
        if result["arm"] != "base" and (budget := result["budget"])["limit"]:
            assert budget["tokens"] <= 1.05 * budget["limit"], result["arm"]
            # Less only where there was nothing left to repair.
            assert budget["tokens"] >= 0.95 * budget["limit"] or budget["candidates"], result["arm"]


@pytest.mark.parametrize("study", PUBLISHED)
def test_the_published_tables_are_those_of_the_published_results(study: str) -> None:
    results = read_results(EVIDENCE / study / "results")
    hypotheses = read_study(results[0]["study"], results[0]["overrides"]).settings.hypotheses
    report = report_of(results, hypotheses)
    assert json.loads((EVIDENCE / study / "study.json").read_text()) == json.loads(json.dumps(report))
    assert (EVIDENCE / study / "study.md").read_text() == markdown(report)
