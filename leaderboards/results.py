"""The built-in agents on AgentDojo: what they score, and nothing of what they read.

    fate-gym leaderboard results --out leaderboards/results

writes `agentdojo.json` (every agent, attack and suite) and `agentdojo.md` (all suites together). The runs themselves
are made in a temporary folder and deleted: no traces, no benchmark text. The same versions give the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.agents import load_agent
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.evaluate import run_evaluation
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.leaderboards.board import build
from fate_gym.leaderboards.exports import to_markdown
from fate_gym.leaderboards.runs import LoadedRun, load_runs

SCHEMA: Final = "fate-gym/results/1"
AGENTS: Final = ("oracle", "gullible", "refuser", "noop", "random")
_DIGITS: Final = 4


def write_results(
    out: Path,
    *,
    suites: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    agents: Sequence[str] = AGENTS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Runs the agents and writes what they score.

    Args:
        out: Folder to write; made if missing.
        suites: Only these; all by default.
        attacks: Only these, each beside the tasks without attack; all registered ones by default.
        agents: Built-in agents.
        say: Called with a line of progress for each agent.

    Returns:
        The files written.

    Raises:
        ValueError: There is no such suite or attack.
    """
    from fate_gym.benchmarks.agentdojo.attacks import attack_names

    chosen = (None, *(attack_names() if attacks is None else attacks))
    env_args = {} if suites is None else {"suite": list(suites)}
    runs = []
    for agent in agents:
        runs.append(_run(agent, chosen, env_args))
        say(f"{agent}: {runs[-1].summary['episodes']['scored']} episodes")
    out.mkdir(parents=True, exist_ok=True)
    table, page = out / "agentdojo.json", out / "agentdojo.md"
    table.write_text(to_results(runs), encoding="utf-8")
    page.write_text(f"# Built-in agents, measured by fate-gym\n\n{to_markdown(build(runs))}", encoding="utf-8")
    return [table, page]


def _run(agent: str, attacks: Sequence[str | None], env_args: Mapping[str, Any]) -> LoadedRun:
    with tempfile.TemporaryDirectory() as folder:
        config = EvalConfig(agent, env=DEFAULT_ENV, attack=tuple(attacks), env_args=dict(env_args), out=Path(folder))
        asyncio.run(run_evaluation(config, load_agent(agent)))
        return load_runs([config.out])[0]


def to_results(runs: Sequence[LoadedRun]) -> str:
    """Returns the groups of the runs' summaries as JSON, a line each; metrics are [value, low, high, n]."""
    first = runs[0].manifest
    head = {
        "schema": SCHEMA,
        "env": first["config"]["env"],
        "env_args": first["config"]["env_args"],
        "versions": {"fate-gym": first["versions"]["fate-gym"]},
        "provenance": first["provenance"][0],
    }
    parts = [f'"{name}":{_dump(value)}' for name, value in head.items()]
    rows = ",\n".join(_dump(row) for run in runs for row in _rows(run))
    return "{" + ",\n".join([*parts, f'"rows":[\n{rows}\n]']) + "}\n"


def _rows(run: LoadedRun) -> Iterator[dict[str, object]]:
    for group in run.summary["groups"]:
        yield {
            "agent": run.summary["agent"],
            **{name: group[name] for name in ("mode", "attack", "suite", "n", "clusters", "errors", "refusals_by")},
            "metrics": {
                name: [_rounded(estimate[key]) for key in ("value", "low", "high", "n")]
                for name, estimate in group["metrics"].items()
            },
        }


def _rounded(value: float | None) -> float | None:
    return round(value, _DIGITS) if isinstance(value, float) else value


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
