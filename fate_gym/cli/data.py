"""`fate-gym data fetch|check` and `fate-gym check-overlap`: benchmark files, and where they must not be."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from fate_gym.cli.settings import add_env_flags, make_env
from fate_gym.cli.terminal import out
from fate_gym.datafiles import DATA, DataFiles, data_folder, fetch_data, find_data, is_on_record
from fate_gym.errors import DataError, UsageError
from fate_gym.overlap import Overlap, find_overlap, read_passages, task_records

_FULL_LENGTH = 64
_LEAST_SHARE = 0.1
"""A few words that a text shares with a task, such as a greeting, say nothing of where it comes from."""


def add_commands(commands: Any) -> None:
    """Adds `data` and `check-overlap`."""
    data = commands.add_parser(
        "data",
        help="fetch or check the data files of a benchmark",
        description="Fetches or checks the data files of benchmarks that do not ship theirs.",
    )
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    fetch = actions.add_parser(
        "fetch",
        help="download the files at the pinned revision",
        description="Downloads a benchmark's files from the Hugging Face hub, at the revision that this version pins.",
        examples=["data fetch agentharm"],
    )
    fetch.add_argument("--out", metavar="DIR", type=Path, help="The folder to write (default: the hub's cache).")
    fetch.set_defaults(run=fetch_files)
    check = actions.add_parser(
        "check",
        help="compare the files with the checksums on record",
        description="Compares a benchmark's files with the checksums of the published ones.",
        examples=["data check agentharm --dir data/agentharm"],
    )
    check.add_argument(
        "--dir", metavar="DIR", help="The folder of the files (default: the benchmark's variable, or the hub's cache)."
    )
    check.set_defaults(run=check_files)
    for action in (fetch, check):
        names = ", ".join(sorted(DATA))
        action.add_argument("name", metavar="NAME", choices=sorted(DATA), help=f"The benchmark: one of {names}.")
    overlap = commands.add_parser(
        "check-overlap",
        help="look for a benchmark's texts in training data",
        description="Looks in files for a benchmark's texts and canary strings, and prints where they are, the largest "
        "share of a task's text first. A share is that of a task's word 8-grams; a paraphrase has none.",
        examples=["check-overlap train.jsonl --env fate/AgentHarm-v0 --split validation"],
    )
    overlap.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="Files of JSON, JSON lines or text, or run folders."
    )
    overlap.add_argument(
        "--min-share",
        type=float,
        default=_LEAST_SHARE,
        metavar="SHARE",
        help=f"Leave out places that hold less of a task's text, from 0 to 1 (default: {_LEAST_SHARE}).",
    )
    overlap.add_argument("--json", action="store_true", help="Print one JSON object a line for each place.")
    add_env_flags(
        overlap,
        env="The Gymnasium id of the environment whose tasks are looked for; required.",
        attacks="The attack on these tasks (default: none).",
    )
    overlap.set_defaults(run=check_overlap)


def fetch_files(options: argparse.Namespace) -> int:
    """Downloads the files of a benchmark."""
    data = DATA[options.name]
    _print_terms(data)
    with contextlib.suppress(ImportError):
        import huggingface_hub  # noqa: F401 (it gives its logger a handler when it is imported)

        # Its warnings come through our own door; that handler would print each a second time.
        logging.getLogger("huggingface_hub").handlers.clear()
    for name in data.checksums:
        out.line(f"{name}: {fetch_data(data, name, options.out)}")
    if options.out is not None:
        out.line(f"Now set {data.variable}={options.out.resolve()}")
    return 0


def check_files(options: argparse.Namespace) -> int:
    """Says of each file whether it is there and the one on record; 0 if any is there and none differs."""
    data = DATA[options.name]
    _print_terms(data)
    folder = data_folder(data, options.dir)
    out.line(f"{f'folder {folder}' if folder else 'the cache of the Hugging Face hub'}:")
    states = [_state(data, name, options.dir) for name in data.checksums]
    for name, state in zip(data.checksums, states, strict=True):
        out.line(f"  {name}: {state}")
    if all(state == "missing" for state in states):
        fetch = f"Run `fate-gym data fetch {data.name}`, or" if data.revision else f"Take them from {data.repo}, and"
        out.line(f"{fetch} set {data.variable} to a folder with the files.")
        return 1
    return int(any(state.startswith("differs") for state in states))


def check_overlap(options: argparse.Namespace) -> int:
    """Prints where a benchmark's texts stand in files; 1 if they do anywhere."""
    if not 0 <= options.min_share <= 1:
        raise UsageError(f"--min-share is a share from 0 to 1, got {options.min_share}")
    env, env_id = make_env(options, required=True)
    for path in options.files:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
    records = list(task_records(env.benchmark))
    passages = (passage for path in options.files for passage in read_passages(path))
    found = sorted(find_overlap(passages, records), key=_rank)
    listed = [overlap for overlap in found if overlap.share >= options.min_share]
    if options.json:
        for overlap in listed:
            out.json(dataclasses.asdict(overlap), indent=None)
    else:
        _print_overlap(listed, len(found) - len(listed), len(records), options.min_share, env_id)
    return int(bool(listed))


def _rank(overlap: Overlap) -> tuple[bool, float, str, int, str]:
    return overlap.task_id is not None, -overlap.share, overlap.source, overlap.line, overlap.task_id or ""


def _print_overlap(listed: list[Overlap], left_out: int, records: int, least: float, env_id: str) -> None:
    for overlap in listed:
        out.line(_overlap_line(overlap))
    if listed:
        tasks = {overlap.task_id for overlap in listed}
        canary = " and a canary string" if None in tasks else ""
        out.line(f"{len(tasks - {None})} of {records} tasks{canary} found; places: {len(listed)}.")
    else:
        out.line(f"No overlap with the {records} tasks of {env_id}.")
    if left_out:
        out.line(f"{left_out} more places hold less than {least:.0%} of a task's text (--min-share 0 shows them).")


def _overlap_line(overlap: Overlap) -> str:
    what = "canary string" if overlap.task_id is None else overlap.task_id
    return f"{overlap.share:4.0%}  {what}  {overlap.source}:{overlap.line}"


def _print_terms(data: DataFiles) -> None:
    policy = data.policy
    out.line(f"{data.name}: {data.repo}{f' at {data.revision}' if data.revision else ''}")
    out.line(f"licence: {policy.licence}. {policy.note}")
    else_read = "; without either, the cache of the hub is read" if data.revision else ""
    out.line(f"The folder is that of data_dir= or {data.variable}{else_read}.")


def _state(data: DataFiles, name: str, folder: str | None) -> str:
    try:
        content = find_data(data, name, folder).read_bytes()
    except DataError:
        return "missing"
    except OSError as error:
        return f"differs (cannot be read: {error.strerror})"
    sha256 = hashlib.sha256(content).hexdigest()
    records = _count(content)
    counted = "" if records is None else f", {records} records"
    expected = data.checksums[name]
    if expected is None:
        return f"no checksum on record (SHA-256 {sha256[:8]}...{counted})"
    if not is_on_record(data, name, sha256):
        return f"differs (SHA-256 {sha256[:8]}..., on record {expected[:8]}...{counted})"
    known = len(expected)
    return f"ok{'' if known == _FULL_LENGTH else f' by the first {known} digits of its SHA-256'}{counted}"


def _count(content: bytes) -> int | None:
    """Counts the records: those of a list, or of the longest list in an object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    lists = [value] if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return max((len(entry) for entry in lists if isinstance(entry, list)), default=None)
