"""Settings of a training: read from YAML and overrides, wrong ones named in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from fate_gym.evaluation.config import shipped_configs
from fate_gym.trainers.cloning.settings import CloningSettings
from fate_gym.trainers.config import TrainConfig, read_config
from fate_gym.trainers.stages.prompts import COMPACT
from fate_gym.trainers.study.plan import Replicate, read_study

LEAST: dict[str, Any] = {"policy": "somewhere", "train": [{"env": "toy/Depot-v0"}]}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(**settings: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**LEAST, **settings}))
        return str(path)

    return write


def test_overrides_reach_nested_settings_and_take_yaml(write: Any) -> None:
    config = read_config(
        write(lora={"rank": 4}),
        ["repair.candidates=2", "pfpo.learning_rate=1e-4", "lora=null", "agent.max_batch=3", "warmup.epochs=2"],
    )
    assert (config.repair.candidates, config.lora, config.agent) == (2, None, {"max_batch": 3})
    assert config.pfpo is not None
    assert config.pfpo.learning_rate == 1e-4
    assert config.warmup is not None
    assert config.warmup.epochs == 2


def test_a_resolved_configuration_reads_back_as_itself(write: Any, tmp_path: Path) -> None:
    config = read_config(write(warmup=None, collect={"thresholds": [1, 1, 1, 0.5]}))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(config.to_json()))
    assert read_config(str(resolved)) == config


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("fate-")])
def test_shipped_configurations_are_whole(name: str) -> None:
    study = read_study(name)
    config = study.config(*study.trainings((), ())[0])
    assert config.evaluate.main in config.evaluate.test
    assert config.train[0].env_args["split"] == "train"


def test_the_tiny_configurations_are_what_the_tiny_policy_is_made_for() -> None:
    assert read_config("fate-tiny").base == CloningSettings()
    for name in ("fate-tiny", "fate-tiny-ci"):
        assert read_config(name).repair.show == COMPACT
    for name in ("fate-tiny-study", "fate-tiny-conflict"):
        assert read_study(name).config(Replicate(), "fate").repair.show == COMPACT


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pfpo.group_siz=4", "unknown setting pfpo.group_siz; did you mean pfpo.group_size?"),
        ("zzz=1", "unknown setting zzz; there are: policy, base"),
        ("repair.candidates=many", "repair.candidates must be an integer, got 'many'"),
        ("repair.candidates=0", "repair: candidates must be at least 1"),
        ("pfpo.learning_rate=fast", "pfpo.learning_rate must be a number"),
        ("pfpo.learning_rate=true", "pfpo.learning_rate must be a number"),
        ("select.over_refusal=1", "select.over_refusal must be true or false"),
        ("select.rule=best", "select.rule must be one of pareto, weighted-sum, random"),
        ("collect.thresholds=[1]", "collect.thresholds must be 4 values"),
        ("evaluate.test=3", "evaluate.test must be a mapping"),
        ("evaluate={test: {a: {}}}", "main is 'pair', which is not among the test sets a"),
        ("repair=4", "repair must be a mapping"),
        ("policy.name=x", "policy is 'somewhere' and has no settings of its own"),
        ("pfpo={", "is not valid YAML"),
        ("=3", "must be KEY=VALUE"),
        ("base=tiny", "either `policy`"),
        ("train=[]", "give `train`"),
        ("rounds=0", "rounds must be at least 1"),
        ("examples.repair_prompt=-1", "must not be negative"),
        ("repair.show.tool_characters=0", "must be at least 1"),
    ],
)
def test_wrong_settings_are_named(write: Any, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        read_config(write(), [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": None, "pfpo": None}, "method fate would learn nothing: give `warmup` or `pfpo`"),
        ({"method": "rft", "warmup": None}, "method rft would learn nothing: give `warmup`"),
        ({"method": "grpo", "pfpo": None}, "method grpo would learn nothing: give `pfpo`"),
    ],
)
def test_methods_need_their_stage(write: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(read_config(write()), **changes)


def test_the_names_of_version_1_are_still_read(write: Any) -> None:
    config = read_config(write(examples={"p_f": 0.1, "x": 0.5}, repair={"prompt": "x"}))
    assert (config.examples.repair_prompt, config.examples.task_prompt) == (0.1, 0.5)
    assert config.repair.prompt == "task_prompt"


def test_the_names_of_version_2_are_still_read(write: Any) -> None:
    assert read_config(write(policy=None, base="tiny", tiny={"steps": 3})).base == CloningSettings(steps=3)
    assert read_config(write(policy=None, base="tiny")).base == CloningSettings()
    # A resolved configuration had the section, whether or not it was used.
    assert read_config(write(tiny={"steps": 3})).base is None
    with pytest.raises(ValueError, match="unknown setting tiny"):
        read_config("fate-tiny", ["tiny.steps=3"])


def test_defaults_are_the_paper_s() -> None:
    config = TrainConfig(policy="p", train=read_config("fate-tiny").train)
    assert config.collect.thresholds == (1.0, 1.0, 1.0, 0.9)
    assert (config.method, config.repair.prompt, config.select.rule) == ("fate", "repair_prompt", "pareto")
