"""Finds benchmark text in training data: shared word 8-grams, and canary strings.

What is compared is what a task shows its agent first, the system prompt left out; in ATBench's full view that is the
whole trajectory. Words are compared without case, punctuation and line breaks, so that a copy inside a chat
template or a JSON string is still found; a paraphrase is not.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fate_gym.benchmark import Benchmark
from fate_gym.chat import Json
from fate_gym.errors import UsageError

N = 8
"""Words in a gram."""

_TEMPLATE = 0.5
"""A gram that more than this share of the tasks has is the benchmark's template, not a task."""

_FEW = 8
"""With fewer tasks, a template cannot be recognised."""

_WORD = re.compile(r"\w+")

_Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of training data.

    Attributes:
        source: Its file.
        line: The line on which it begins, from 1.
        text: Its text.
        one_record: Whether all of it stands on that line, even if the text has line breaks.
    """

    source: str
    line: int
    text: str
    one_record: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What training data must not contain: a task's text, and its benchmark's canary string, if there is one."""

    task_id: str
    text: str
    canary: str | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """A task or a canary string that stands in the training data.

    Attributes:
        task_id: The task; None for a canary string, which stands for all of them.
        source: File of the passage.
        line: Line of the first shared gram or of the canary.
        share: Part of the task's grams that the passage holds, in (0, 1]; 1.0 for a canary.
    """

    task_id: str | None
    source: str
    line: int
    share: float


def find_overlap(passages: Iterable[Passage], records: Iterable[Record]) -> Iterator[Overlap]:
    """Yields what of the records stands in the passages, passage by passage, the largest share first.

    Args:
        passages: Read one after the other, so that they may be more than fits into memory.
        records: What to look for; all are held in memory. A text of fewer than `N` words is one gram.
    """
    listed = list(records)
    canaries = sorted({record.canary for record in listed if record.canary})
    grams = [set(_grams(record.text)) for record in listed]
    common = Counter(gram for task_grams in grams for gram in task_grams)
    owners: dict[_Gram, list[int]] = defaultdict(list)
    for index, task_grams in enumerate(grams):
        if len(listed) >= _FEW:
            task_grams -= {gram for gram in task_grams if common[gram] > _TEMPLATE * len(listed)}
        for gram in task_grams:
            owners[gram].append(index)
    lengths = sorted({len(gram) for gram in owners})
    for passage in passages:
        for canary in canaries:
            if (at := passage.text.casefold().find(canary.casefold())) >= 0:
                yield Overlap(None, passage.source, _line(passage, at), 1.0)
        shared: dict[int, dict[_Gram, int]] = defaultdict(dict)
        for gram, at in _all_grams(passage.text, lengths):
            for index in owners.get(gram, ()):
                shared[index].setdefault(gram, at)
        for index, places in sorted(
            shared.items(), key=lambda entry: (-len(entry[1]) / len(grams[entry[0]]), entry[0])
        ):
            share = len(places) / len(grams[index])
            yield Overlap(listed[index].task_id, passage.source, _line(passage, min(places.values())), share)


def task_records(benchmark: Benchmark) -> Iterator[Record]:
    """Yields what each task of a benchmark shows first, and the canary that its metadata names."""
    for task_id in benchmark.tasks:
        opening = benchmark.open(task_id, 0).opening
        text = "\n".join(_strings([message["content"] for message in opening if message["role"] != "system"]))
        canary = benchmark.task(task_id).metadata.get("canary")
        yield Record(task_id, text, canary if isinstance(canary, str) else None)


def read_passages(path: Path) -> Iterator[Passage]:
    """Reads training data: a run folder, a .jsonl file (a passage a line), a .json file, or anything else as text.

    Raises:
        UsageError: The path is none of these, or cannot be read.
    """
    if path.is_dir():
        if not (path / "manifest.json").is_file():
            raise UsageError(f"{path} is a folder without manifest.json, so no run: name its files")
        for name in ("episodes.jsonl", "failures.jsonl"):
            if (path / name).exists():
                yield from _read_file(path / name)
        return
    yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Passage]:
    try:
        if path.suffix != ".jsonl":
            text = path.read_text(encoding="utf-8", errors="replace")
            value = _parsed(text) if path.suffix == ".json" else None
            yield Passage(str(path), 1, text if value is None else "\n".join(_strings(value)), value is not None)
            return
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                value = _parsed(line)
                yield Passage(str(path), number, line if value is None else "\n".join(_strings(value)), True)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _parsed(text: str) -> Json:
    """Returns the JSON value of a text; None where it is none, and is then taken as text."""
    try:
        value: Json = json.loads(text)
        return value
    except (ValueError, RecursionError):
        return None


def _strings(value: Json) -> Iterator[str]:
    """Yields every string in a JSON value, the keys of objects left out."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            stack.extend(reversed(node.values()))
        elif isinstance(node, list):
            stack.extend(reversed(node))


def _words(text: str) -> list[tuple[str, int]]:
    """Splits a text into normalised words, each with its place."""
    return [(unicodedata.normalize("NFKC", match[0]).casefold(), match.start()) for match in _WORD.finditer(text)]


def _grams(text: str) -> Iterator[_Gram]:
    words = [word for word, _ in _words(text)]
    length = min(N, len(words))
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1) if length)


def _all_grams(text: str, lengths: Iterable[int]) -> Iterator[tuple[_Gram, int]]:
    """Yields the grams of several lengths, each with its place."""
    words = _words(text)
    only = [word for word, _ in words]
    for length in lengths:
        for i in range(len(words) - length + 1):
            yield tuple(only[i : i + length]), words[i][1]


def _line(passage: Passage, at: int) -> int:
    return passage.line if passage.one_record else passage.line + passage.text.count("\n", 0, at)
