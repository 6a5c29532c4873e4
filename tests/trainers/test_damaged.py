"""Damaged files of a training: one error that names the file, and the field where there is one; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fate_gym.agents.marks import MARK, contamination
from fate_gym.errors import RunCorruptError, RunError, RunMismatchError, UsageError
from fate_gym.evaluation.plan import TaskSet
from fate_gym.trainers.algorithms.update_folder import UpdateFolder
from fate_gym.trainers.cloning.learning import clone
from fate_gym.trainers.cloning.settings import CloningSettings
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.round import FILES, Round
from fate_gym.trainers.stage_file import StageFile, write_stage

CONFIG = TrainConfig(policy="somewhere", train=(TaskSet("toy/Depot-v0"),))

NO_OBJECTS = [b"", b"\0" * 64, b"null\n", b'["a"]\n', b'{"schema": 1', b"\xff{}", b"[" * 50_000, b'{"a":1,"a":2}\n']


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_files_that_hold_no_object_are_named(tmp_path: Path, content: bytes) -> None:
    for path, use in _uses(tmp_path).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises((RunError, UsageError), match=path.name):
            use()
        path.unlink()


def _uses(root: Path) -> dict[Path, Callable[[], Any]]:
    """Each small file of a training, and something that reads it."""
    update = root / "round-1" / "warmup"
    return {
        root / "config.json": TrainingFolder(CONFIG, root).__enter__,
        update / "settings.json": lambda: UpdateFolder(update, {"a": 1}),
        update / "numbers.json": lambda: Round(TrainingFolder(CONFIG, root), 1).outcome("warmup"),
        update / MARK: lambda: contamination(update),
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schema": "fate-gym/train/99", "config": {}}, "newer fate-gym"),
        ({"schema": "fate-gym/train/2"}, r"config\.json: config is missing"),
        ({"schema": "fate-gym/train/2", "config": []}, r"config\.json: config must be an object"),
        ({"schema": "fate-gym/train/2", "config": {"policy": "p", "train": 4}}, r"config\.json: train\[0\] must be"),
        ({"schema": "fate-gym/train/2", "config": {"roundz": 1}}, r"config\.json: unknown setting roundz"),
    ],
)
def test_settings_that_cannot_have_been_written(tmp_path: Path, config: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config) + "\n")
    with pytest.raises(RunError, match=message) as raised, TrainingFolder(CONFIG, tmp_path):
        pass
    assert not isinstance(raised.value, RunMismatchError)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"stage": "collect"}, "seconds is missing"),
        ({"seconds": "9"}, "a finite number"),
        ({"seconds": -1}, "negative"),
    ],
)
def test_times_that_are_none(tmp_path: Path, line: Any, field: str) -> None:
    (tmp_path / "times.jsonl").write_text(f'{{"seconds": 1.0}}\n{json.dumps(line)}\n')
    with pytest.raises(RunCorruptError, match=rf"times\.jsonl, line 2.*{field}"):
        TrainingFolder(CONFIG, tmp_path).seconds()


@pytest.mark.parametrize(
    ("stage", "counts", "message"),
    [
        ("collect", {"tokens": "many"}, "counts.tokens must be an integer"),
        ("collect", {}, "counts.tokens is missing"),
        ("select", {"modes": {}}, "counts.chosen is missing"),
    ],
)
def test_counts_that_no_sum_could_use(tmp_path: Path, stage: Any, counts: Any, message: str) -> None:
    this_round = Round(TrainingFolder(CONFIG, tmp_path), 1)
    name, schema = FILES[stage]
    write_stage(this_round.path / name, schema, [], inputs={}, counts=counts)
    with pytest.raises(RunCorruptError, match=rf"{name}, line 1: {message}"):
        this_round.outcome(stage)


def test_numbers_that_no_sum_could_use(tmp_path: Path) -> None:
    this_round = Round(TrainingFolder(CONFIG, tmp_path), 1)
    (this_round.path / "pfpo").mkdir(parents=True)
    (this_round.path / "pfpo" / "numbers.json").write_text('{"steps": 2, "tokens": 9}\n')
    with pytest.raises(RunCorruptError, match=r"numbers\.json: rollouts is missing"):
        this_round.outcome("pfpo")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"value": 1}], "line 2: key is missing"),
        ([{"key": ["a"]}], "line 2: key must be a string"),
        ([{"key": "a"}, {"key": "a", "value": 2}], "line 3: key is 'a', which an earlier line has already"),
    ],
)
def test_records_that_cannot_be_told_apart(tmp_path: Path, records: list[Any], message: str) -> None:
    path = tmp_path / "stage.jsonl"
    with StageFile(path, "fate-gym/test/1", {}):
        pass
    part = tmp_path / "stage.jsonl.part"
    part.write_bytes(part.read_bytes() + b"".join(json.dumps(record).encode() + b"\n" for record in records))
    with pytest.raises(RunCorruptError, match=message), StageFile(path, "fate-gym/test/1", {}):
        pass


def test_a_step_without_its_numbers(tmp_path: Path) -> None:
    folder = UpdateFolder(tmp_path, {})
    (tmp_path / "steps.jsonl").write_text('{"step": 1}\n{"loss": 2.0}\n')
    with pytest.raises(RunCorruptError, match=r"steps\.jsonl, line 2: step is missing"):
        folder.rewind()


def test_a_folder_among_the_checkpoints_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-best").mkdir(parents=True)
    with pytest.raises(RunCorruptError, match="checkpoint-best is no checkpoint"):
        UpdateFolder(tmp_path, {})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"[]", b"\0" * 300])
def test_a_damaged_checkpoint_of_cloning(tmp_path: Path, content: bytes) -> None:
    import torch

    checkpoint = tmp_path / "cloning.pt"
    checkpoint.write_bytes(content)
    settings = CloningSettings(steps=1)
    with pytest.raises(RunCorruptError, match=r"cloning\.pt cannot be read .*: delete it to begin anew"):
        clone(torch.nn.Linear(1, 1), _runs(), settings, checkpoint, digest="d", on_progress=lambda *_: None)


def _runs() -> list[Any]:
    from fate_gym.trainers.cloning.encoding import EncodedEpisode

    return [EncodedEpisode(kind, [1, 2], [0, 1]) for kind in CloningSettings().mixture.shares()]
