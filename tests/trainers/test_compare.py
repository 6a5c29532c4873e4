"""Arms of a comparison: each is a configuration that can be, one failing stops no other, and the table says it all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fate_gym.errors import FateGymError
from fate_gym.trainers.algorithms.advantages import RULES
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.gate import NotCompetentError
from fate_gym.trainers.study.compare import ARMS, BASELINES, arm_configs, at_cost_of, compare, failures, tables


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"policy": "somewhere", "train": [{"env": "fate/AgentDojo-v0"}], "rounds": 1}))
    return str(path)


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1), "n": 60}


def row(asr: float) -> dict[str, Any]:
    return {"ASR": estimate(asr), "TSR": estimate(0.5), "earned_utility": {**estimate(0.93), "n": 37}, "n": 97}


def trained_round() -> dict[str, Any]:
    return {"collected": {"records": 100}, "pfpo": {"rollouts": 650, "steps": 10}}


def summary(asr: float) -> dict[str, Any]:
    return {
        "before": row(0.4),
        "after": row(asr),
        "splits": {"inj": {"before": row(0.3), "after": row(0.27)}},
        "rounds": [
            {"round": 0},
            *({"collected": {"records": 100}, "pfpo": {"rollouts": 650, "steps": 10}} for _ in "12"),
        ],
        "budget": {"rollouts": 1500, "candidates": 100, "tokens": 1_234_567, "seconds": 90.0},
    }


def text(comparison: Mapping[str, Any]) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        for table in tables(comparison):
            console.print(table)
    return captured.get()


def test_every_arm_is_a_configuration_of_its_own(config: str):
    configs = arm_configs(config, ["seed=7"], list(ARMS))
    assert {made.seed for made in configs.values()} == {7}
    distinct = {json.dumps(made.to_json(), sort_keys=True) for name, made in configs.items() if name != "fate"}
    assert len(distinct) == len(ARMS) - 1
    assert configs["fate"] in [configs[f"fate-{rule}"] for rule in RULES], "the default is one of the rules"


def test_every_rule_and_method_has_an_arm(config: str):
    configs = arm_configs(config, arms=list(ARMS))
    assert {made.pfpo.rule for made in configs.values() if made.pfpo} == set(RULES)
    methods = {made.method for made in configs.values()}
    assert methods == {"fate", "sft", "rft", "dpo", "grpo", "gdpo", "security-only"}
    assert {configs[name].method for name in BASELINES} == methods


def test_an_arm_s_own_settings_go_last(config: str):
    assert arm_configs(config, ["method=sft"], ["dpo"])["dpo"].method == "dpo"


def test_arms_that_are_none_are_refused(config: str):
    with pytest.raises(ValueError, match="no arm 'ppo'; there are: fate"):
        arm_configs(config, arms=["fate", "ppo"])
    with pytest.raises(ValueError, match="each once"):
        arm_configs(config, arms=["fate", "fate"])
    with pytest.raises(ValueError, match="not none"):
        arm_configs(config, arms=[])


def test_each_arm_trains_in_its_folder_and_a_failure_stops_no_other(config: str, tmp_path: Path):
    trained: list[tuple[str, str, Path]] = []

    def train(name: str, settings: TrainConfig, out: Path) -> dict[str, Any]:
        trained.append((name, settings.method, out))
        if settings.method == "dpo":
            raise FateGymError("no pair [to learn] from")
        return summary(0.1 if settings.method == "fate" else 0.2)

    comparison = compare(arm_configs(config, arms=["fate", "dpo", "rft"]), tmp_path / "out", train)
    assert trained == [(name, name, tmp_path / "out" / "arms" / name) for name in ("fate", "dpo", "rft")]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == comparison
    assert failures(comparison) == ["dpo: no pair [to learn] from"]
    assert "summary" not in comparison["arms"]["dpo"]
    assert comparison["arms"]["rft"]["summary"]["after"]["ASR"]["value"] == 0.2


def test_an_interrupt_keeps_the_arms_before_it(config: str, tmp_path: Path):
    def train(name: str, settings: TrainConfig, out: Path) -> dict[str, Any]:
        if settings.method == "rft":
            raise KeyboardInterrupt
        return summary(0.1)

    with pytest.raises(KeyboardInterrupt):
        compare(arm_configs(config, arms=["fate", "rft"]), tmp_path, train)
    assert list(json.loads((tmp_path / "comparison.json").read_text())["arms"]) == ["fate"]


def test_a_base_that_fails_the_gate_ends_it_all(config: str, tmp_path: Path):
    def train(name: str, settings: TrainConfig, out: Path) -> dict[str, Any]:
        raise NotCompetentError("utility 0.10")

    with pytest.raises(NotCompetentError):
        compare(arm_configs(config), tmp_path, train)


def test_baselines_sample_as_many_episodes_as_fate(config: str, tmp_path: Path):
    given: dict[str, TrainConfig] = {}

    def train(name: str, settings: TrainConfig, out: Path) -> dict[str, Any]:
        given[name] = settings
        return summary(0.1)

    configs = arm_configs(config, ["repair.candidates=4"], ["grpo", "fate", "gdpo", "rft", "sft", "no-warmup"])
    compare(configs, tmp_path, train)
    assert {name for name, made in given.items() if made == configs[name]} == {"grpo", "fate", "no-warmup"}
    # A round of FATE: 100 collected, 50 candidates, 10 steps of 65 episodes: 800 in all.
    assert given["gdpo"].pfpo
    assert given["gdpo"].pfpo.steps == round(700 / 65)
    assert [one.repeats for one in given["rft"].train] == [8]
    assert given["sft"].repair.candidates == 4 * 700 / 50


def test_a_budget_follows_from_fate_without_optimisation_or_repairs(config: str):
    told = summary(0.1)
    for row in told["rounds"][1:]:
        row["pfpo"] = None
    told["budget"] |= {"rollouts": 356, "candidates": 0}
    configs = arm_configs(config, ["pfpo.groups=2", "pfpo.group_size=4"], ["grpo", "sft"])
    pfpo = at_cost_of(configs["grpo"], told).pfpo
    assert pfpo
    assert pfpo.steps == (178 - 100) // 8 + 1
    assert at_cost_of(configs["sft"], told) == configs["sft"]


def test_the_table_has_values_intervals_n_and_costs():
    printed = text(
        {"arms": {"fate": {"summary": summary(0.1)}, "dpo": {"error": "no"}, "rft": {"summary": {"after": None}}}}
    )
    main, other = printed.split("test set: inj")
    main, cost = ([line.split() for line in part.splitlines() if line.strip()] for part in main.split("\ncost"))
    shown, spent = {line[0]: line for line in main}, {line[0]: line for line in cost}
    assert shown["before"][1] == "40.0"
    assert shown["fate"][1:] == ["10.0", "50.0", "-", "-", "93.0", "-", "37+60"]
    assert main[main.index(shown["fate"]) + 1] == ["0-20", "40-60", "83-100"]
    assert shown["rft"][1:] == ["-"] * 6 + ["0+0"]
    assert "dpo" not in shown
    assert spent["fate"][1:] == ["1,500", "100", "1,234,567", "1.5"]
    assert spent["dpo"] == ["dpo", "failed"]
    assert spent["rft"][1:] == ["-"] * 4
    assert "27.0" in other
    assert "dpo" not in other


def test_a_comparison_in_which_all_failed_still_prints():
    assert "failed" in text({"arms": {"fate": {"error": "gate"}}})
