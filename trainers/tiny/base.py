"""The tiny case's base policy, made from nothing: runs, tokenizer, network, cloning; a folder for `--agent hf:DIR`."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError
from fate_gym.trainers.stages.prompts import compact_prompt
from fate_gym.trainers.tiny.cloning import EncodedRun, OnProgress, clone
from fate_gym.trainers.tiny.demonstrations import RepairPrompt, Run, play
from fate_gym.trainers.tiny.model import make_model
from fate_gym.trainers.tiny.settings import TinySettings
from fate_gym.trainers.tiny.tokenizer import chat_format, encode, train_tokenizer

SCHEMA = "fate-gym/tiny-base/1"
_REPORT, _CHECKPOINT = "base.json", "cloning.pt"


@dataclass(frozen=True, slots=True)
class BaseReport:
    """How a base policy came about, as it stands in `base.json`.

    Attributes:
        settings: What it was made with.
        digest: Of these settings.
        seen: Pairs "SUITE/USER_TASK/INJECTION_TASK" that cloning saw under attack.
        runs: Kind of run -> how many there are.
        parameters: Weights of the network.
        tokens_per_run: Mean over the runs.
        tokens: Tokens trained on, padding included.
        loss: Cross-entropy on policy tokens at the end, nats a token.
        seconds: Wall-clock times of "runs", "tokenizer" and "cloning", the last of this start alone.
    """

    settings: dict[str, Json]
    digest: str
    seen: list[str]
    runs: dict[str, int]
    parameters: int
    tokens_per_run: float
    tokens: int
    loss: float
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Json]:
        """As it stands in `base.json`."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def read_base(folder: Path) -> BaseReport | None:
    """Reads the report of a finished base policy; None where there is none.

    Raises:
        RunCorruptError: The report is damaged, or of another version.
    """
    path = folder / _REPORT
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return BaseReport(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunCorruptError(f"{path} cannot be read ({error}): delete {folder} and build the base anew") from error


def build_base(
    out: Path,
    settings: TinySettings,
    *,
    repair_prompt: RepairPrompt = compact_prompt,
    on_progress: OnProgress = lambda step, steps, loss: None,
) -> BaseReport:
    """Makes the base policy, or finds it made.

    A finished base of the same settings is left as it is; an unfinished one goes on from its last checkpoint.

    Args:
        out: The folder; made if missing.
        settings: What to make.
        repair_prompt: Writes the repair prompts that cloning sees: as they will be in training.
        on_progress: Told after every step of cloning.

    Raises:
        ValueError: The settings leave no run of a kind that the mixture asks for.
        RunCorruptError: The folder holds a damaged report.
    """
    report = read_base(out)
    if report is not None and report.digest == settings.digest():
        return report
    out.mkdir(parents=True, exist_ok=True)
    (out / _REPORT).unlink(missing_ok=True)
    watch = _Watch()
    runs = play(settings, repair_prompt)
    watch.lap("runs")
    tokenizer = train_tokenizer(runs, settings.vocab_size, settings.max_token_length)
    chat = chat_format(tokenizer)
    encoded = [EncodedRun(run.kind, *encode(chat, run)) for run in runs]
    encoded = [run for run in encoded if len(run.ids) <= settings.context]
    watch.lap("tokenizer")
    model = make_model(tokenizer, settings)
    digest = _digest(settings, encoded)
    result = clone(model, encoded, settings, out / _CHECKPOINT, digest=digest, on_progress=on_progress)
    watch.lap("cloning")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    report = BaseReport(
        settings=settings.to_json(),
        digest=settings.digest(),
        seen=_seen(runs),
        runs=dict(collections.Counter(run.kind for run in encoded)),
        parameters=sum(weights.numel() for weights in model.parameters()),
        tokens_per_run=sum(len(run.ids) for run in encoded) / len(encoded),
        tokens=int(result["tokens"]),
        loss=result["loss"],
        seconds=watch.seconds,
    )
    _write(out / _REPORT, report)
    (out / _CHECKPOINT).unlink(missing_ok=True)
    return report


def _seen(runs: Sequence[Run]) -> list[str]:
    return sorted({run.task_id for run in runs if run.attack is not None})


def _digest(settings: TinySettings, runs: Sequence[EncodedRun]) -> str:
    """Of the settings and of every token, so that new repair prompts do not go on from old weights."""
    found = hashlib.sha256(settings.digest().encode())
    for run in runs:
        found.update(json.dumps([run.kind, run.ids]).encode())
    return found.hexdigest()


def _write(path: Path, report: BaseReport) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class _Watch:
    """Times what follows one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
