"""What a writer knows of its run is what a reader of the files finds, whatever happened to them."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
from small_episodes import make_episode

from fate_gym.episode import Episode
from fate_gym.errors import DiskError
from fate_gym.evaluation.run import run_of
from fate_gym.evaluation.store import SCHEMA, RunFolder

CONFIG = {"agent": "a", "env": "e", "defences": [], "env_args": {}}
MANIFEST: dict[str, Any] = {"schema": SCHEMA, "config": CONFIG, "digest": "d"}


def record(key: str, **metadata: Any) -> Episode:
    return make_episode(key, metadata=metadata)


def errored(key: str, **metadata: Any) -> Episode:
    return make_episode(key, status="provider_error", error="no line", metadata=metadata)


def counts(run: RunFolder) -> dict[str, Any]:
    """What a summary says of a run, in whose plan are a to d."""
    return dict(run_of(run, planned="abcd").summary["episodes"])


def test_what_stands_in_one_file_is_counted_though_the_other_failed(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            with pytest.raises(DiskError, match=r"failures\.jsonl could not be written"):
                run.append(record("a"), errored("b", text="x" * 10_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(ValueError, match="'a' is already there"):
            run.append(record("a"))
        run.append(record("c", text="x" * 1000))
        assert counts(run) == {"planned": 4, "scored": 2, "errors": 0, "missing": 2}
        assert [episode.key for episode in run_of(run).episodes] == ["a", "c"]
    assert counts(RunFolder.read(tmp_path)) == {"planned": 4, "scored": 2, "errors": 0, "missing": 2}


def test_a_line_that_another_program_has_changed_meanwhile_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"))
        run.append(record("b"))
        # Of the same length in the same file.
        changed = path.read_bytes().replace(b'"key":"b"', b'"key":"d"')
        time.sleep(0.01)
        with path.open("r+b") as file:
            file.write(changed)
        run.append(record("c"))
        assert counts(run)["scored"] == 3
        assert [episode.key for episode in run_of(run).episodes] == ["a", "c", "d"]


def test_a_record_that_is_none_is_passed_over_each_time(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, MANIFEST) as run:
        run.append(record("a"))
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"key":"b"}\n')
    run, problems = RunFolder(tmp_path), []
    for _ in range(2):
        assert run_of(run, planned="ab", on_problem=problems.append).summary["episodes"]["scored"] == 1
    assert len(problems) == 1
