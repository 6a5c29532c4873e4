"""Marks of contamination, from a model's folder to the run that it is scored in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from fate_gym.agents import Answerer, load_agent
from fate_gym.agents.marks import MARK, contamination
from fate_gym.errors import UsageError
from fate_gym.evaluation import EvalConfig, run_evaluation


def marked(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / MARK).write_text(json.dumps({"contaminated_by": names}))
    return folder


def test_marks_of_a_model_and_of_its_adapter_add_up(tmp_path: Path) -> None:
    model, adapter = marked(tmp_path / "model", "B", "A"), marked(tmp_path / "adapter", "B", "C")
    assert contamination(model, adapter) == ("A", "B", "C")
    assert contamination(tmp_path, None, "someone/model-on-the-hub") == ()


@pytest.mark.parametrize("content", ["", "[]", '{"learned_from": []}', '{"contaminated_by": null}'])
def test_a_damaged_mark_is_no_clean_bill(tmp_path: Path, content: str) -> None:
    (tmp_path / MARK).write_text(content)
    with pytest.raises(UsageError, match="is damaged"):
        contamination(tmp_path)


def test_a_run_says_what_its_model_was_trained_on_through_defences_too(tmp_path: Path) -> None:
    agent = load_agent(f"hf:{marked(tmp_path / 'model', 'Shop/validation')}", defences=["repeat_user_prompt"])
    assert agent.contaminated_by == ("Shop/validation",)
    for contaminated_by in ((), ("Shop/validation",)):
        noop = Answerer("noop", "Done.")
        object.__setattr__(noop, "contaminated_by", contaminated_by)
        config = EvalConfig(agent="noop", env="toy/Parcels-v0", limit=1, out=tmp_path / f"run{len(contaminated_by)}")
        asyncio.run(run_evaluation(config, noop))
        assert json.loads((config.out / "manifest.json").read_text())["contaminated_by"] == list(contaminated_by)
