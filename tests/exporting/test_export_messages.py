"""Conversations for fine-tuning: what is in them, which are left out, and that `datasets` and TRL read them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import trajectories
from small_runs import edit_json

from fate_gym.agents import load_agent
from fate_gym.cli.main import main
from fate_gym.errors import UsageError
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import export_run

BANKING = {"env_args": {"suite": "banking"}, "attack": (None, "direct"), "limit": 3}


def run_of(out: Path, agent: Any = "gullible", **settings: Any) -> RunFolder:
    config = EvalConfig(str(agent), out=out, **{**BANKING, **settings})
    asyncio.run(run_evaluation(config, load_agent(agent) if isinstance(agent, str) else agent))
    return RunFolder.read(out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_of(tmp_path_factory.mktemp("messages") / "run")


def test_conversations_have_their_tools_and_a_mask_of_what_the_policy_wrote(run: RunFolder, tmp_path: Path) -> None:
    written = export_run(run.path, "messages", tmp_path / "out.jsonl")
    rows = rows_of(written.path)
    episodes = {episode.key: episode for episode in run.episodes()}
    assert written.episodes == len(rows) == len(episodes) == 6
    env: Any = gym.make("fate/AgentDojo-v0", suite="banking").unwrapped
    for row in rows:
        episode = episodes[row["key"]]
        assert [message["role"] for message in row["messages"]] == [message["role"] for message in episode.messages]
        assert [m["content"] for m in row["messages"]] == [m["content"] for m in episode.messages]
        assert [bool(marked) for marked in row["mask"]] == [m["role"] == "assistant" for m in episode.messages]
        assert json.loads(row["tools"]) == env.reset(seed=0)[0]["tools"]
        calls = [call["function"] for message in row["messages"] for call in message.get("tool_calls", ())]
        assert all(isinstance(function["arguments"], dict) for function in calls)
        named = [message["name"] for message in row["messages"] if message["role"] == "tool"]
        assert named == [function["name"] for function in calls]
        assert row["axes"]["security"] == (episode.verdict.security.value if episode.attack else None)
        assert row["contaminated_by"] == []


def test_only_keeps_episodes_by_their_verdict(run: RunFolder, tmp_path: Path) -> None:
    written = export_run(run.path, "messages", tmp_path / "out.jsonl", only={"all": 1.0})
    kept = {row["key"] for row in rows_of(written.path)}
    perfect = {e.key for e in run.episodes() if all(not a.active or a.value == 1 for a in e.verdict.axes.values())}
    assert kept == perfect
    assert 0 < len(kept) < 6
    assert written.left_out == {"episodes below --only": 6 - len(kept)}


def test_turns_that_are_not_the_policy_s_own_words_are_left_out(tmp_path: Path) -> None:
    bad = {"id": "bad", "type": "function", "function": {"name": "get_balance", "arguments": "{"}}

    async def careless(observation: dict[str, Any]) -> dict[str, Any]:
        said = [message for message in observation["messages"] if message["role"] == "assistant"]
        return {"role": "assistant", "content": "", "tool_calls": [] if said else [bad]}

    run = run_of(tmp_path / "run", careless, attack=None)
    written = export_run(run.path, "messages")
    assert written.path == tmp_path / "run.jsonl"
    assert written.episodes == 0
    assert written.left_out == {"episodes with a turn that could not be read": 3}


def test_what_is_not_to_be_trained_on_is_refused_or_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No folder is opened because a run names it.
    monkeypatch.setenv("FATE_GYM_ATBENCH_DIR", trajectories.folder())
    options = {"env": "fate/ATBench-v0", "env_args": {"data_dir": trajectories.folder()}, "attack": None}
    run = run_of(tmp_path / "run", "always-unsafe", **options)
    assert main(["export", str(run.path), "--to", "messages"]) == 2
    assert "fate-gym: not to be trained on: ATBench is a test set" in capsys.readouterr().err
    assert not (tmp_path / "run.jsonl").exists()
    assert main(["export", str(run.path), "--to", "messages", "--despite-policy"]) == 0
    rows = rows_of(tmp_path / "run.jsonl")
    assert [row["contaminated_by"] for row in rows] == [["fate/ATBench-v0"]] * 3
    assert [row["tools"] for row in rows] == ["[]"] * 3


@pytest.mark.parametrize(
    ("change", "works"),
    [
        (lambda config: config.update(env="a_strangers_module:fate/AgentDojo-v0"), True),
        (lambda config: config["env_args"].update(refusal_judge="a_strangers_module:judge"), True),
        (lambda config: config["env_args"].update(benchmark="a_strangers_module:judge"), False),
        (lambda config: config["env_args"].update(version="v999"), False),
        (lambda config: config.update(env="strange/Env-v0"), False),
        (lambda config: config.update(repeats="many"), False),
        (lambda config: config.pop("seed"), False),
    ],
)
def test_a_strangers_run_imports_nothing(
    change: Any, works: bool, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_strangers_module.py").write_text("raise SystemExit('imported')\ndef judge(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    strange = Path(shutil.copytree(run.path, tmp_path / "strange"))
    edit_json(strange / "manifest.json", lambda manifest: change(manifest["config"]))
    if works:
        assert export_run(strange, "messages").episodes == 6
    else:
        with pytest.raises(UsageError):
            export_run(strange, "messages")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--to", "messages", "--only", "safety=1"], "safety is no axis; there are: security"),
        (["--to", "messages", "--only", "security"], "--only takes AXIS=LEAST"),
        (["--to", "parquet", "--only", "all=1"], "--to parquet takes no --only"),
        (["--to", "agentdojo", "--despite-policy"], "--to agentdojo takes no --despite-policy"),
    ],
)
def test_wrong_usage_is_one_line(
    run: RunFolder, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), *arguments]) == 2
    assert problem in capsys.readouterr().err
    with pytest.raises(UsageError):
        export_run(run.path, "massages")


@pytest.mark.slow
def test_datasets_reads_every_argument_as_it_was(run: RunFolder, tmp_path: Path) -> None:
    from datasets import load_dataset

    written = export_run(run.path, "messages", tmp_path / "out.jsonl")
    table = load_dataset("json", data_files=str(written.path), cache_dir=str(tmp_path / "cache"), split="train")
    assert [row["messages"] for row in table] == [row["messages"] for row in rows_of(written.path)]


@pytest.mark.slow
def test_a_step_of_trl_s_sft_learns_what_the_mask_marks(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    import tiny_model
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    written = export_run(run.path, "messages", tmp_path / "out.jsonl")
    text = written.path.read_text()
    head = "<|im_start|>assistant\n"
    start = head + "{{ message.content }}"
    assert start in tiny_model.QWEN_TEMPLATE
    template = tiny_model.QWEN_TEMPLATE.replace(start, head + "{% generation %}{{ message.content }}", 1)
    template = template.replace("{%- endfor %}<|im_end|>\n", "{%- endfor %}<|im_end|>{% endgeneration %}\n", 1)
    folder = tiny_model.make_tiny_model(tmp_path / "model", [text], chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = load_dataset("json", data_files=str(written.path), cache_dir=str(tmp_path / "cache"), split="train")
    model = Qwen3ForCausalLM.from_pretrained(folder)
    before = model.lm_head.weight.detach().clone()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=table.select_columns(["messages", "tools"]),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            assistant_only_loss=True,
            max_steps=1,
            per_device_train_batch_size=2,
            max_length=None,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        ),
    )
    (first, *_) = rows_of(written.path)
    learned = tokenizer.decode([label for label in trainer.train_dataset[0]["labels"] if label != -100])
    own = [m["content"] for m, marked in zip(first["messages"], first["mask"], strict=True) if marked]
    others = [m["content"] for m, marked in zip(first["messages"], first["mask"], strict=True) if not marked]
    assert all(content in learned for content in own)
    assert not any(content in learned for content in others)
    trainer.train()
    assert torch.isfinite(model.lm_head.weight).all()
    assert not torch.equal(model.lm_head.weight, before)
