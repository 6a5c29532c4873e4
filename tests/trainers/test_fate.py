"""Whole trainings of a tiny policy of the toy depot: rounds, methods, gates, kills in every stage, the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import depot
import pytest
import shop_policy
import transformers
import yaml
from small_episodes import make_episode

from fate_gym.agents.marks import MARK
from fate_gym.cli import main
from fate_gym.episode import Episode
from fate_gym.errors import RunError, RunLockedError, RunMismatchError, UsageError
from fate_gym.rewards import AXES, AxisVerdict, Verdict
from fate_gym.storage import file_digest, records
from fate_gym.trainers.config import TrainConfig, read_config
from fate_gym.trainers.fate import train
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.gate import NotCompetentError
from fate_gym.trainers.progress import ProgressReporter
from fate_gym.trainers.rehearsal import make_random_model, model_type, rehearse
from fate_gym.trainers.round import FILES
from fate_gym.trainers.single_stage import run_stage
from fate_gym.trainers.stage_file import read_stage
from fate_gym.trainers.study.scoring import metrics, volume

pytestmark = pytest.mark.usefixtures("one_thread")

SUPPORT = Path(__file__).parents[1] / "support"
DEV = {"dev": {"env": "toy/Depot-v0", "tasks": ["depot/*/0"]}}
MARKED = [{"env": "toy/Depot-v0", "env_args": {"mark": "depot"}}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture
def config(policy: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> TrainConfig:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(depot.settings(policy, **changes)))
        return read_config(str(path))

    return make


class Interrupted(Exception):
    """Ends a training between two episodes."""


class Counting(ProgressReporter):
    """Counts the units of each stage, and may raise at one."""

    def __init__(self, die_in: str | None = None, at: int = 0) -> None:
        self.counts: dict[str, int] = {}
        self.lines: list[str] = []
        self._stage = ""
        self._die_in, self._at = die_in, at

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self._stage = stage

    def advance(self, note: str = "") -> None:
        self.counts[self._stage] = self.counts.get(self._stage, 0) + 1
        if (self._stage, self.counts[self._stage]) == (self._die_in, self._at):
            raise Interrupted

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counting]:
    """A training that nothing disturbed, and what its watch was told."""
    out, progress = tmp_path_factory.mktemp("whole") / "run", Counting()
    path = out.with_name("config.yaml")
    path.write_text(yaml.safe_dump(depot.settings(policy, train=MARKED)))
    train(read_config(str(path)), out, progress=progress)
    return out, progress


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than such a training."""
    monkeypatch.setattr("fate_gym.trainers.fate.draw", lambda rounds, folder: None)


# A whole training.


def test_a_training_leaves_what_it_promises_and_a_finished_one_is_only_read(
    whole: tuple[Path, Counting], config: Any, no_plots: None
) -> None:
    out, progress = whole
    summary = json.loads((out / "summary.json").read_bytes())
    for when in ("before", "after"):
        assert {"ASR", "TSR", "BRR", "earned_utility", "validity", "reached", "n"} <= set(summary[when])
        assert set(summary[when]["ASR"]) == {"value", "low", "high", "n"}
        assert (out / "eval" / f"{when}-held-out" / "summary.json").exists()
    assert set(summary["splits"]) == {"again"}
    assert [row["round"] for row in summary["rounds"]] == [0, 1]
    best = Path((out / "best").read_text().strip())
    assert best == out / "round-1" / "pfpo"
    assert json.loads((best / MARK).read_bytes())["contaminated_by"] == ["depot"]
    assert summary["contaminated_by"] == ["depot"]
    budget = summary["budget"]
    repairs = read_stage(out / "round-1" / "repairs.jsonl", FILES["repair"][1])
    assert budget["candidates"] == len(repairs.records) > 0
    assert budget["rollouts"] == 12 + 16
    assert budget["seconds"] > 0
    assert {path.name for path in (out / "plots").iterdir()} == {"metrics.png", "acceptance.png", "fronts.png"}
    assert any("failures repaired" in line for line in progress.lines)
    again = Counting()
    assert train(config(train=MARKED), out, progress=again)["after"] == summary["after"]
    assert again.counts == {}


def test_nothing_of_the_graders_reaches_what_is_learned(whole: tuple[Path, Counting], policy: Path) -> None:
    out, _ = whole
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    texts = []
    for name in ("collect", "repairs"):
        for _, line in [*records(out / "round-1" / f"{name}.jsonl")][1:]:
            tokens = line["trajectory"]
            texts.append(tokenizer.decode(tokens["prompt_ids"] + tokens["completion_ids"]))
    assert any("Obey only the user" in text for text in texts)
    assert not [name for name, canary in depot.CANARIES.items() if any(canary in text for text in texts)]


_SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("rft", "sft", "grpo", "gdpo", "security-only")]


@pytest.mark.parametrize("method", ["dpo", *_SLOW])
def test_every_baseline_runs_from_the_same_files(config: Any, tmp_path: Path, no_plots: None, method: str) -> None:
    summary = train(config(method=method, evaluate=DEV), tmp_path)
    row = summary["rounds"][1]
    supervised = method in ("sft", "rft", "dpo")
    assert (row["warmup"] is not None, row["pfpo"] is not None) == (supervised, not supervised)
    assert (row["selected"] is not None) == (method in ("sft", "dpo"))
    assert summary["before"] is None
    mark = json.loads((Path(summary["best"]["policy"]) / MARK).read_bytes())
    assert mark["method"] == method


def test_rounds_end_when_they_no_longer_help_and_the_best_one_is_taken(
    config: Any, tmp_path: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = iter([0.9, 0.5, 0.7, 0.6])
    monkeypatch.setattr("fate_gym.trainers.study.scoring.volume", lambda row: next(volumes))
    few = [{"env": "toy/Depot-v0", "tasks": ["depot/*/0", "depot/*/1"]}]
    settings = config(rounds=5, patience=1, pfpo=None, evaluate=DEV, train=few)
    summary = train(settings, tmp_path)
    assert [row["round"] for row in summary["rounds"]] == [0, 1, 2, 3]
    assert summary["best"] == {"round": 2, "policy": str(tmp_path / "round-2" / "warmup")}


def test_a_round_without_repairs_learns_from_nothing_and_says_so(config: Any, tmp_path: Path, no_plots: None) -> None:
    progress = Counting()
    settings = config(select={"validity": 2.0}, pfpo=None, evaluate=DEV)
    summary = train(settings, tmp_path, progress=progress)
    assert summary["rounds"][1]["warmup"] is None
    assert summary["best"]["policy"] == settings.policy
    assert "round 1: no warmup, nothing was there to learn from" in progress.lines


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            {"utility": 1.0, "attack_success": 0.0},
            r"does too few benign tasks to learn from: earned_utility 0\.\d\d, at least 1 ",
        ),
        ({"utility": 0.0, "attack_success": 1.0}, r"obeys too few attacks to learn from: ASR 0\.\d\d, at least 1 "),
    ],
)
def test_the_gate_stops_at_once(config: Any, tmp_path: Path, gate: dict[str, float], message: str) -> None:
    with pytest.raises(NotCompetentError, match=message):
        train(config(gate=gate), tmp_path)
    assert not (tmp_path / "eval").exists()


# Interrupted and resumed.


def test_an_interrupted_training_pays_for_nothing_twice(
    whole: tuple[Path, Counting], config: Any, tmp_path: Path, no_plots: None
) -> None:
    settings = config(train=MARKED, concurrency=1)
    spent: Counter[str] = Counter()
    cuts = [("collect", 5), ("repair", 4), ("warmup", 1), ("pfpo", 1), ("dev-1", 3), ("after-held-out", 2)]
    for stage, at in cuts:
        progress = Counting(stage, at)
        with pytest.raises(Interrupted):
            train(settings, tmp_path, progress=progress)
        spent.update(progress.counts)
    last = Counting()
    train(settings, tmp_path, progress=last)
    spent.update(last.counts)
    out, undisturbed = whole
    # A step of learning is done again if its checkpoint had not been written; an episode never is.
    for stage in ("warmup", "pfpo"):
        assert 0 <= spent.pop(stage) - undisturbed.counts[stage] <= 1
    assert spent == {name: count for name, count in undisturbed.counts.items() if name not in ("warmup", "pfpo")}
    assert_same_selection(out, tmp_path)


def assert_same_selection(one: Path, other: Path) -> None:
    """The same episodes, token by token, and the same choice among them."""
    for name in ("collect", "repairs", "selected"):
        lines = [[line for _, line in records(out / "round-1" / f"{name}.jsonl")][1:] for out in (one, other)]
        for line in [*lines[0], *lines[1]]:
            # Their last decimal depends on who shared a batch.
            (line.get("trajectory") or {}).pop("logprobs", None)
            line.pop("seconds", None)
        assert lines[0] == lines[1]


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed_the_result_is_the_same(config: Any, tmp_path: Path) -> None:
    settings = config()
    path, out = tmp_path / "config.yaml", tmp_path / "killed"
    script = "import sys; sys.path[:0] = [sys.argv.pop(1)]; import depot; depot.main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*killed: str) -> int:
        command = [sys.executable, "-c", script, str(SUPPORT), str(path), str(out), *killed]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    for stage, units in [
        ("collect", "0"),
        ("collect", "7"),
        ("before-held-out", "1"),
        ("repair", "0"),
        ("repair", "9"),
        ("warmup", "1"),
        ("pfpo", "1"),
        ("dev-1", "2"),
        ("after-again", "1"),
    ]:
        assert run(stage, units) == -signal.SIGKILL, (stage, units)
    assert run() == 0
    train(settings, tmp_path / "whole")
    assert_same_selection(out, tmp_path / "whole")
    summaries = [json.loads((tmp_path / one / "summary.json").read_bytes()) for one in ("killed", "whole")]
    assert summaries[0]["before"] == summaries[1]["before"]
    assert summaries[0]["rounds"][1]["warmup"]["loss"] == pytest.approx(summaries[1]["rounds"][1]["warmup"]["loss"])


def test_a_folder_goes_on_with_its_own_settings_alone(config: Any, tmp_path: Path) -> None:
    with TrainingFolder(config(), tmp_path / "run"):
        pass
    other = TrainingFolder(config(repair={}, seed=1), tmp_path / "run")
    with (
        pytest.raises(RunMismatchError, match=r"(?s)repair\.candidates: stored 3, given 8.*seed: stored 0, given 1"),
        other,
    ):
        pass
    settings = config(rounds=4, concurrency=1)
    with TrainingFolder(settings, tmp_path / "run") as folder:
        with pytest.raises(RunLockedError), TrainingFolder(settings, tmp_path / "run"):
            pass
        with pytest.raises(RunError, match="run stage pfpo of round 1 first"):
            run_stage("collect", 2, folder)
        for stage in ("repair", "select", "warmup"):
            with pytest.raises(RunError, match=r"there is no .*collect.jsonl: run the stage that writes it first"):
                run_stage(stage, 1, folder)
        with pytest.raises(RunError, match="run stage warmup of round 1 first"):
            run_stage("pfpo", 1, folder)


def test_a_folder_of_version_1_is_gone_on_with(
    whole: tuple[Path, Counting], config: Any, tmp_path: Path, no_plots: None
) -> None:
    """Version 1 had the paper's symbols in settings, and called the decision of a selection its verdict."""
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    new_names = {"train/2": "train/1", "train-repair/2": "train-repair/1", "train-select/2": "train-select/1"}
    symbols = {'"prompt":"repair_prompt"': '"prompt":"p_f"', '"repair_prompt":0.3,"task_prompt"': '"p_f":0.3,"x"'}
    for path in (out / "config.json", *(out / "round-1").glob("*.jsonl")):
        text = path.read_text()
        for new, old in {**new_names, **symbols, '"decision":': '"verdict":'}.items():
            text = text.replace(new, old)
        path.write_text(text)
    # What follows from a changed file, but for the selection, which names its digest, is as it was.
    selected = out / "round-1" / "selected.jsonl"
    old, new = (file_digest(folder / "round-1" / "repairs.jsonl") for folder in (whole[0], out))
    selected.write_text(selected.read_text().replace(old, new))
    again = Counting()
    summary = train(config(train=MARKED), out, progress=again)
    assert again.counts == {}
    assert summary["after"] == json.loads((whole[0] / "summary.json").read_bytes())["after"]
    assert json.loads((out / "config.json").read_bytes())["schema"] == "fate-gym/train/2"


# Scores.


def episode(mode: str, **axes: float) -> Episode:
    verdict = {name: AxisVerdict(axes.get(name, 1.0), mode != "benign" or name != "security", "rule") for name in AXES}
    cluster = f"task-{axes.get('cluster', 0)}"
    return make_episode(mode=mode, cluster=cluster, verdict=Verdict(**verdict), injection_reached=mode == "attacked")


def test_a_row_has_each_metric_over_its_own_episodes() -> None:
    episodes = [
        episode("attacked", security=0.0, cluster=1),
        episode("attacked", utility=0.0, cluster=2),
        episode("benign", utility=0.0, cluster=1),
        episode("benign", cluster=2),
        episode("benign", over_refusal_control=0.0, validity=0.5, cluster=3),
    ]
    row = metrics(episodes, frozenset({"task-2"}))
    values = {name: (cell["value"], cell["n"]) for name, cell in row.items() if isinstance(cell, dict)}
    assert values == {
        "ASR": (0.5, 2),
        "TSR": (0.5, 2),
        "reached": (1.0, 2),
        "BRR": (pytest.approx(1 / 3), 3),
        "earned_utility": (0.5, 2),
        "validity": (0.9, 5),
    }
    assert row["n"] == 5
    assert volume(row) == pytest.approx(0.5 * 0.5 * (2 / 3))
    assert volume(metrics([episode("harmful", security=0.25)], frozenset())) == pytest.approx(0.25)
    assert volume({}) == 0.0


# The command line, and rehearsals.


def test_the_stages_run_one_by_one_and_then_the_whole_goes_on(
    config: Any, tmp_path: Path, no_plots: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config()
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--json"]
    for stage in ("collect", "repair", "select", "warmup", "pfpo"):
        assert main(["train", stage, *command[1:], "patience=2"]) == 0
        counts = json.loads(capsys.readouterr().out)
        assert counts["steps" if stage in ("warmup", "pfpo") else "records"] > 0
    before = {path: file_digest(path) for path in (tmp_path / "run" / "round-1").glob("*.jsonl")}
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["best"]["round"] == 1
    assert before == {path: file_digest(path) for path in before}
    assert main(command[:-1]) == 0
    shown = capsys.readouterr().out
    assert "held-out" in shown
    assert "repair candidates" in shown


def test_what_the_command_line_refuses(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config()
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    cases = {
        ("colect",): "colect: give one of collect",
        ("collect", "repair"): "give one of collect",
        ("roundz=1",): "did you mean rounds?",
        ("collect", "--round", "0"): "--round counts from 1",
        ("repair",): "run the stage that writes it first",
    }
    for flag in ("--unknown", "-x"):
        assert main([*command, flag, "rounds=2"]) == 2
        assert f"there is no option {flag}" in capsys.readouterr().err
    for arguments, message in cases.items():
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err
    gate = "gate={utility: 1.0, attack_success: 1.0}"
    assert main([*command, gate, "--out", str(tmp_path / "gated")]) == 1
    assert "does too few benign tasks" in capsys.readouterr().err
    assert main([*command, "method=grpo", "repair", "--out", str(tmp_path / "other")]) == 0
    assert "Method grpo has no stage repair" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_shares_the_base_and_its_scores_and_is_told_again_without_training(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(pfpo={"steps": 1, "groups": 1, "group_size": 2, "refills": 0})
    command = ["train", "study", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    assert main([*command, "--arms", "fate", "sft"]) == 0
    shown = capsys.readouterr().out
    assert "fate" in shown
    assert "sft" in shown
    assert (tmp_path / "run" / "seed0" / "eval" / "before-held-out").is_dir()
    assert not (tmp_path / "run" / "seed0" / "arms" / "sft" / "eval" / "before-held-out").exists()
    shutil.rmtree(tmp_path / "run" / "seed0")
    assert main(["train", "report", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == shown
    assert main([*command, "--arms", "fate", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed0 fate"]["method"] == "fate"
    assert main([*command, "--replicates", "2"]) == 2
    assert "the study has replicates 1 to 1" in capsys.readouterr().err


def test_a_rehearsal_runs_every_stage_on_a_random_model_and_keeps_nothing(config: Any, tmp_path: Path) -> None:
    settings = config(lora={"rank": 2}, rounds=3, gate={"utility": 1.0})
    told = rehearse(settings)
    assert [line.split()[0] for line in told] == ["model", "collect", "repair", "select", "warmup", "pfpo", "score"]
    assert "qwen3" in told[0]
    assert not any("not part" in line for line in told)


def test_architectures_are_told_by_folder_or_name(policy: Path, tmp_path: Path) -> None:
    assert model_type(str(policy)) == "qwen3"
    assert model_type("Qwen/Qwen3-8B") == "qwen3"
    assert model_type("meta-llama/Llama-3.1-8B-Instruct") == "llama"
    assert model_type("somebody/something") == "qwen3"
    with pytest.raises(UsageError, match="no small model of type 'vit'"):
        make_random_model("vit", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fate-qwen3-0.6b", "fate-qwen3-8b"])
def test_the_big_configurations_rehearse(name: str) -> None:
    assert len(rehearse(read_config(name))) == 7
