"""Small real runs on disk, and ways to change what they hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fate_gym.agents import load_agent
from fate_gym.errors import RunError
from fate_gym.evaluation import EvalConfig, RunFolder, run_evaluation
from fate_gym.evaluation.manifest import run_digest
from fate_gym.evaluation.summary import summarise
from fate_gym.leaderboards import LoadedRun, load_runs
from fate_gym.rollout import Agent

DOJO: dict[str, Any] = {
    "attack": (None, "important_instructions"),
    "env_args": {"suite": ["banking"], "split": "dev"},
}
"""Settings of an evaluation of AgentDojo on a small split, with and without attack."""


class MakeRun(Protocol):
    """Evaluates an agent into a folder."""

    def __call__(self, out: Path, agent: str | Agent = "oracle", **settings: Any) -> Path: ...


def make_run(out: Path, agent: str | Agent = "oracle", **settings: Any) -> Path:
    named = agent if isinstance(agent, str) else agent.name
    config = EvalConfig(agent=named, out=out, **settings)
    loaded = load_agent(agent, defences=config.defences) if isinstance(agent, str) else agent
    asyncio.run(run_evaluation(config, loaded))
    return out


def loaded(run: Path) -> LoadedRun:
    """Reads one run as boards do."""
    return load_runs([run])[0]


Change = Callable[[dict[str, Any]], Any]


def edit_json(path: Path, change: Change) -> None:
    """Changes a file that holds one object."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value) + "\n")


def edit_line(path: Path, which: Callable[[dict[str, Any]], bool], change: Change) -> str:
    """Changes the first matching record of a file of lines; returns its key."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    record = next(record for record in records if which(record))
    change(record)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records))
    return str(record["key"])


def redigest(manifest: dict[str, Any]) -> None:
    """Makes the digest fit the settings, as a careful forger does."""
    manifest["digest"] = run_digest(manifest["config"], manifest["provenance"], ())


def resummarise(run: Path) -> None:
    """Makes the summary follow from the episodes, as a careful forger does."""
    try:
        folder = RunFolder.read(run)
        episodes, failures = ([*read(lambda problem: None)] for read in (folder.episodes, folder.failures))
    except RunError:
        return
    summary = summarise(episodes, failures, folder.manifest, [episode.key for episode in episodes])
    (run / "summary.json").write_text(json.dumps(summary) + "\n")
