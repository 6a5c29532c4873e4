"""A base policy that is made by cloning: scripted episodes, a policy to start from, cloning.

The result is a folder that `--agent hf:DIR` plays.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fate_gym.chat import Json
from fate_gym.errors import RunCorruptError
from fate_gym.storage import make_folder, read_object, replace_file, sync_tree
from fate_gym.trainers.cloning.demonstrations import RepairPrompt, ScriptedEpisode, play
from fate_gym.trainers.cloning.encoding import EncodedEpisode, encode
from fate_gym.trainers.cloning.learning import OnProgress, clone
from fate_gym.trainers.cloning.settings import CloningSettings
from fate_gym.trainers.cloning.start import start_policy
from fate_gym.trainers.marks import mark
from fate_gym.trainers.policy import save_policy
from fate_gym.trainers.stages.prompts import compact_prompt

SCHEMA = "fate-gym/tiny-base/1"
_REPORT, _CHECKPOINT = "base.json", "cloning.pt"


@dataclass(frozen=True, slots=True)
class BaseReport:
    """How a base policy was made, as it stands in `base.json`.

    Attributes:
        settings: The settings.
        digest: Digest of the settings.
        seen: Pairs "SUITE/USER_TASK/INJECTION_TASK" that cloning saw under attack.
        runs: Number of scripted episodes of each kind.
        parameters: Number of weights.
        tokens_per_run: Mean tokens of an episode.
        tokens: Tokens trained on, padding included.
        loss: Cross-entropy on policy tokens at the end, nats a token.
        seconds: Wall-clock times of "runs", "start" and "cloning". That of cloning is of the last start alone.
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
        """Returns the report as `base.json` has it."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def read_base(folder: Path) -> BaseReport | None:
    """Reads the report of a finished base policy; None if there is none.

    Raises:
        RunError: The report is damaged, or a newer fate-gym wrote it.
    """
    path = folder / _REPORT
    if not path.exists():
        return None
    try:
        report = read_object(path, SCHEMA)
        return BaseReport(
            settings=report.object("settings").values,
            digest=report.text("digest"),
            seen=report.texts("seen"),
            runs={kind: int(count) for kind, count in report.number_mapping("runs").items()},
            parameters=report.integer("parameters"),
            tokens_per_run=report.number("tokens_per_run"),
            tokens=report.integer("tokens"),
            loss=report.number("loss"),
            seconds=report.number_mapping("seconds"),
        )
    except RunCorruptError as error:
        raise RunCorruptError(f"{error}; or delete {folder}, and the base policy is made again") from error


def build_base(
    out: Path,
    settings: CloningSettings,
    *,
    repair_prompt: RepairPrompt = compact_prompt,
    on_progress: OnProgress = lambda step, steps, loss: None,
) -> BaseReport:
    """Makes the base policy, unless it is there already.

    A finished base policy with the same settings is left as it is, an unfinished one is resumed.

    Args:
        out: The folder; made if it is missing.
        settings: Settings of the start, the data and cloning.
        repair_prompt: Writes the repair prompts that cloning sees; they must be those of the training.
        on_progress: Called after every step of cloning.

    Raises:
        ValueError: The settings leave no episode of a kind that the mixture asks for.
        UsageError: The policy to start from cannot be loaded, or its chat template does not fit.
        RunError: The folder holds a damaged report or checkpoint.
    """
    report = read_base(out)
    if report is not None and report.digest == settings.digest():
        return report
    make_folder(out)
    # The report goes first and comes last: a folder that has it is complete.
    (out / _REPORT).unlink(missing_ok=True)
    clock = _Stopwatch()
    runs = play(settings, repair_prompt)
    clock.lap("runs")
    model, chat = start_policy(settings, runs)
    encoded = [encode(chat, run) for run in runs]
    # A tiny policy could not play longer ones either: it has no positions beyond its context.
    encoded = [run for run in encoded if len(run.ids) <= settings.context]
    clock.lap("start")
    digest = _digest(settings, encoded)
    result = clone(model, encoded, settings, out / _CHECKPOINT, digest=digest, on_progress=on_progress)
    clock.lap("cloning")
    parameters = sum(weights.numel() for weights in model.parameters())
    save_policy(model, chat.tokenizer, out)
    if settings.start is not None:
        mark(out, [], earlier=settings.start)
    sync_tree(out)
    report = BaseReport(
        settings=settings.to_json(),
        digest=settings.digest(),
        seen=_seen(runs),
        runs=dict(collections.Counter(run.kind for run in encoded)),
        parameters=parameters,
        tokens_per_run=sum(len(run.ids) for run in encoded) / len(encoded),
        tokens=int(result["tokens"]),
        loss=result["loss"],
        seconds=clock.seconds,
    )
    replace_file(out / _REPORT, json.dumps(report.to_json(), indent=1).encode() + b"\n")
    (out / _CHECKPOINT).unlink(missing_ok=True)
    return report


def _seen(runs: Sequence[ScriptedEpisode]) -> list[str]:
    return sorted({run.task_id for run in runs if run.attack is not None})


def _digest(settings: CloningSettings, runs: Sequence[EncodedEpisode]) -> str:
    """Digest of the settings and of every token, so that other repair prompts never resume from these weights."""
    whole = hashlib.sha256(settings.digest().encode())
    for run in runs:
        whole.update(json.dumps([run.kind, run.ids]).encode())
    return whole.hexdigest()


class _Stopwatch:
    """Measures steps that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
