"""Logs of other harnesses become run folders: played here, graded by us, the recorded verdict beside ours.

A reader (`fate_gym.importing.logs`) finds and reads the logs of one harness; all else is alike for all of them. The
plan of an imported run holds whole attacks: a task that no log was found for is missing from the run.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fate_gym.attack import Attack, attack_label
from fate_gym.chat import Json
from fate_gym.errors import ProviderError
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.manifest import make_manifest
from fate_gym.evaluation.recorded import Origin
from fate_gym.evaluation.replaying import Recording
from fate_gym.evaluation.run import run_of
from fate_gym.evaluation.store import RunFolder
from fate_gym.evaluation.workers import Workers, engage, keep_busy
from fate_gym.importing.comparing import OTHERWISE
from fate_gym.importing.logs import Header, LeftOut, Reader, Settings
from fate_gym.importing.playing import LogPlayer, Piece
from fate_gym.storage import encode_line, make_folder, replace_file

LEFT_OUT_FILE: Final = "left_out.jsonl"
"""What was not imported, a line each: run, source or key, reason."""

NO_LOG: Final = "a task of the plan without a log"
AGAIN: Final = "a second log of the same task and attack"

_MOST_OTHERWISE: Final = 0.1
"""Share of a run's tool answers that may be otherwise here before its scores are doubted as a whole."""

_PIECE: Final = 16
"""Logs that a process plays before it hands the episodes over."""

_AHEAD: Final = 2
"""Pieces under way for each process: one that it works on, and one that waits."""


@dataclass(slots=True)
class Imported:
    """What came of one run.

    Attributes:
        path: The run folder.
        summary: Its summary.
        logs: Logs of the run.
        scores: Axis -> recorded scores that could be compared with ours.
        differences: (axis, class) -> how many of them differ.
        outputs: Kind -> answers of tools, compared with ours.
        left_out: Reason -> logs that are not in the run.
        parts_left_out: Part -> how often a part of an imported log is not in its episode.
    """

    path: Path
    summary: Mapping[str, Any]
    logs: int
    scores: Counter[str] = field(default_factory=Counter)
    differences: Counter[tuple[str, str]] = field(default_factory=Counter)
    outputs: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    parts_left_out: Counter[str] = field(default_factory=Counter)

    @property
    def met_other_tools(self) -> bool:
        """Whether the tools were so unlike ours that the scores of a replay say little of the agent."""
        return self.outputs[OTHERWISE] > _MOST_OTHERWISE * self.outputs.total()


def import_runs(
    reader: Reader,
    out: Path,
    *,
    source: str = "",
    workers: int = 1,
    begin: Callable[[str, int], None] = lambda run, logs: None,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Imported], Counter[str]]:
    """Imports all that a reader finds.

    An import that was interrupted goes on where it stood; the same logs give the same run.

    Args:
        reader: The logs.
        out: The run folder, or the folder of the run folders where there are several.
        source: Where the logs are from: an address, a commit, a licence. Stands in the manifests.
        workers: Processes that play.
        begin: Called with the name of each run and the number of its logs, before they are played.
        on_done: Called when a log has been played and stored.

    Returns:
        What came of each run, and reason -> number of logs that belong to no run.

    Raises:
        RunError: A folder belongs to another run, is in use, or is damaged; or an episode could not be written.
    """
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    left: list[LeftOut] = []
    for entry in reader.survey():
        if isinstance(entry, LeftOut):
            left.append(entry)
        else:
            groups[entry.run, entry.variant].append(entry)
    folders = _folders(list(groups), out)
    make_folder(out)
    runs = []
    of_no_run = [entry for entry in left if not any(entry.run == run for run, _ in groups)]
    for (run, variant), headers in groups.items():
        # What cannot be played may not name the version, so that it is counted with the first run of its name.
        first = next(key for key in groups if key[0] == run) == (run, variant)
        own = [entry for entry in left if entry.run == run] if first else []
        one = _Import(reader, headers, own, folders[run, variant], source)
        begin(folders[run, variant].name, one.logs)
        runs.append(one.run(workers, on_done))
    if of_no_run and len(runs) != 1:
        lines = ({"run": entry.run, "source": entry.source, "reason": entry.reason} for entry in of_no_run)
        _write_left_out(out, lines)
    return runs, Counter(entry.reason for entry in of_no_run)


class _Import:
    """The import of one run."""

    def __init__(self, reader: Reader, headers: Sequence[Header], left: list[LeftOut], path: Path, source: str) -> None:
        self._reader, self._path, self._left = reader, path, left
        self._settings = reader.settings(headers)
        self._config = _config(self._settings, headers, path)
        self._plan = self._config.plan()
        self._pieces: dict[str, Piece] = {}
        for header in headers:
            key = _key(header)
            if key in self._pieces:
                left.append(LeftOut(header.source, header.run, AGAIN))
            elif (item := self._plan.find(key)) is not None:
                self._pieces[key] = Piece(item, header)
            else:
                left.append(LeftOut(header.source, header.run, "no task of the attack"))
        self._missing = [key for key in self._plan.items.keys if key not in self._pieces]
        self._manifest = self._make_manifest(headers, source)

    @property
    def logs(self) -> int:
        """Number of logs that are played."""
        return len(self._pieces)

    def run(self, workers: int, on_done: Callable[[], None]) -> Imported:
        with RunFolder.open(self._path, self._manifest, ignore=NOT_IN_DIGEST) as folder:
            waiting = [piece for key, piece in self._pieces.items() if key not in folder.done]
            for _ in range(len(self._pieces) - len(waiting)):
                on_done()
            try:
                asyncio.run(self._play(_chunks(waiting), workers, folder, on_done))
            finally:
                summary = run_of(folder, planned=self._plan.items.keys).summary
                folder.write_summary(summary)
        lines: list[Mapping[str, Json]] = [{"source": entry.source, "reason": entry.reason} for entry in self._left]
        _write_left_out(self._path, [*lines, *({"key": key, "reason": NO_LOG} for key in self._missing)])
        return self._count(folder, summary)

    async def _play(
        self, chunks: Iterator[list[Piece]], count: int, folder: RunFolder, on_done: Callable[[], None]
    ) -> None:
        """Has chunks of logs played, and stores what comes of each as soon as it is there."""
        workers: Workers[LogPlayer] = engage(LogPlayer(self._reader, self._config), count)

        async def play_one_by_one() -> None:
            for chunk in chunks:
                played = await workers.do(LogPlayer.play, chunk)
                folder.append_imported(played)
                for _ in played:
                    on_done()

        try:
            await keep_busy(count * _AHEAD if count > 1 else 1, play_one_by_one)
        finally:
            await workers.aclose()

    def _count(self, folder: RunFolder, summary: Mapping[str, Any]) -> Imported:
        result = Imported(self._path, summary, len(self._pieces))
        result.left_out.update(entry.reason for entry in self._left)
        for recorded in {entry.key: entry for entry in folder.recorded()}.values():
            result.scores.update(recorded.scores.keys())
            result.differences.update(recorded.differences.items())
            result.outputs.update(recorded.outputs)
            result.parts_left_out.update(recorded.left_out)
        return result

    def _make_manifest(self, headers: Sequence[Header], source: str) -> dict[str, Any]:
        whens = sorted(header.when for header in headers if header.when is not None)
        manifest = make_manifest(self._config, self._plan, Recording((), ProviderError("")))
        origin = Origin(
            format=self._reader.format,
            source=source,
            packages=tuple(sorted({header.package or "unknown" for header in headers})),
            first=whens[0] if whens else None,
            last=whens[-1] if whens else None,
            logs=len(self._pieces),
            left_out=dict(Counter(entry.reason for entry in self._left)),
            unknown=("tokens, cost, attempts and seeds", "sampling settings", *self._settings.unknown),
        )
        return {**manifest, "imported": origin.to_json()}


def _config(settings: Settings, headers: Sequence[Header], path: Path) -> EvalConfig:
    named = list(dict.fromkeys(header.attack for header in headers if header.injections is None))
    own: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
    for header in headers:
        if header.injections is not None:
            own[str(header.attack)].setdefault(header.task_id, header.injections)
    payloads: list[Attack] = [{"name": name, "payloads": texts} for name, texts in own.items()]
    return EvalConfig(
        agent=settings.agent,
        defences=settings.defences,
        env=settings.env,
        attack=(*named, *payloads) if settings.has_attacks else None,
        env_args=settings.env_args,
        repeats=1 + max(header.repeat for header in headers),
        out=path,
    )


def _key(header: Header) -> str:
    attack: Attack = header.attack
    if header.injections is not None:
        attack = {"name": header.attack, "payloads": {}}
    return f"{attack_label(attack) or 'none'}/{header.task_id}#{header.repeat}"


def _folders(runs: Sequence[tuple[str, str]], out: Path) -> dict[tuple[str, str], Path]:
    """Chooses the run folders: `out` itself for one run, folders below it for several."""
    if len(runs) == 1:
        return {runs[0]: out}
    folders: dict[tuple[str, str], Path] = {}
    for run, variant in runs:
        several = sum(other == run for other, _ in runs) > 1
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{run}-{variant}" if several else run).strip("-.") or "run"
        taken = {path.name for path in folders.values()}
        names = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
        folders[run, variant] = out / next(entry for entry in names if entry not in taken)
    return folders


def _chunks(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    waiting = iter(pieces)
    while chunk := list(islice(waiting, _PIECE)):
        yield chunk


def _write_left_out(folder: Path, lines: Iterable[Mapping[str, Json]]) -> None:
    replace_file(folder / LEFT_OUT_FILE, b"".join(map(encode_line, lines)))
