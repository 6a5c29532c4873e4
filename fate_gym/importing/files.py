"""Which files an import reads, and which of them belong to one run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fate_gym.errors import UsageError

_BELOW_PIPELINE = 4
"""Parts of the path of AgentDojo's logs below the pipeline: suite, user task, attack, file."""


def files_below(paths: Sequence[Path], suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yields (path below what was given, path) of files in and below paths, sorted.

    Raises:
        UsageError: There is no such path, or no such file below it.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
        below = [path] if path.is_file() else sorted(_walk(path, tuple(suffixes)))
        if not below:
            raise UsageError(f"{path} holds no file that ends in {' or '.join(suffixes)}")
        # Several folders may hold files of the same names.
        root = path.parent if path.is_file() or len(paths) > 1 else path
        yield from ((file.relative_to(root).as_posix(), file) for file in below)


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        paths = (Path(where, name) for name in names if name.endswith(suffixes))
        # A pipe would keep its reader waiting for ever.
        yield from (path for path in paths if path.is_file())


def run_names(sources: Iterable[str]) -> Mapping[str, str]:
    """Names the run of each file by the part of its path that tells runs apart.

    Files of AgentDojo stand below PIPELINE in SUITE/USER_TASK/ATTACK/INJECTION.json. Everything above the suite tells
    runs apart, but for the parts that all have alike: `none/logs/local` and `filter/logs/local` are `none` and
    `filter`.
    """
    folders = {source: tuple(source.split("/")[:-_BELOW_PIPELINE]) for source in sources}
    distinct = set(folders.values())
    start, end = _shared(distinct), _shared({parts[::-1] for parts in distinct})
    if len(distinct) == 1:
        return {source: parts[-1] if parts else "recorded" for source, parts in folders.items()}
    return {source: "-".join(parts[start : len(parts) - end]) or "recorded" for source, parts in folders.items()}


def _shared(paths: set[tuple[str, ...]]) -> int:
    """Counts the parts with which all paths begin."""
    count = 0
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count
