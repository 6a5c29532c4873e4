"""The injection vectors that the ground truth of each user task reads: only there can an attack be noticed.

AgentDojo runs every ground truth again for every attack object to find out. The answer depends on the suite alone, so
for AgentDojo's own suites it ships as a table, which `tools/agentdojo_tables.py` in the repository writes.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
from agentdojo.functions_runtime import FunctionsRuntime
from agentdojo.task_suite.task_suite import TaskSuite
from agentdojo.types import get_text_content_as_str

from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

FILE_NAME = "candidates.json"


def candidates(version: str, suite: str | TaskSuite) -> dict[str, tuple[str, ...]]:
    """Returns user task -> the injection vectors that its ground truth reads, as `BaseAttack.get_injection_candidates`.

    Upstream raises for a task that reads none; here such a task has an empty tuple.

    Args:
        version: AgentDojo's benchmark version.
        suite: A suite, or the name of one registered for the version.

    Raises:
        ValueError: If no such suite is registered.
    """
    if isinstance(suite, str):
        named = upstream.suites(version)
        if suite not in named:
            raise ValueError(f"AgentDojo {version} has no suite {suite!r}; it has {', '.join(named)}.")
        suite = named[suite]
    shipped = _shipped().get(version, {}).get(suite.name, {})
    # A suite of the user's own may bear an AgentDojo suite's name, or add tasks to it.
    if suite.data_path is None and shipped.keys() == suite.user_tasks.keys():
        return dict(shipped)
    return dict(computed(suite))


def computed(suite: TaskSuite) -> Mapping[str, tuple[str, ...]]:
    """Finds out what `candidates` returns, by running every ground truth of a suite."""
    return _computed(suite, tuple(sorted(suite.user_tasks, key=_number)))


@functools.lru_cache(maxsize=32)
def _computed(suite: TaskSuite, tasks: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    template = SuiteTemplate(suite)
    canaries = {vector: f"<CANARY---{vector}--->" for vector in template.vectors}
    start = template.environment(canaries)
    return {task: _shown(suite, task, start.load(), canaries) for task in tasks}


def _shown(suite: TaskSuite, task: str, environment: Any, canaries: Mapping[str, str]) -> tuple[str, ...]:
    user_task = suite.user_tasks[task]
    pipeline = GroundTruthPipeline(user_task)
    *_, messages, _ = pipeline.query(user_task.PROMPT, FunctionsRuntime(suite.tools), environment)
    texts = [get_text_content_as_str(message["content"]) for message in messages if message["content"] is not None]
    return tuple(vector for vector, canary in canaries.items() if any(canary in text for text in texts))


@functools.cache
def _shipped() -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    table = json.loads(importlib.resources.files(__package__).joinpath(FILE_NAME).read_text(encoding="utf-8"))
    tables = [{task: tuple(vectors) for task, vectors in tasks.items()} for tasks in table["tables"]]
    return {
        version: {name: tables[index] for name, index in suites.items()}
        for version, suites in table["versions"].items()
    }


def _number(task: str) -> tuple[int, str]:
    return int(task.rpartition("_")[2]), task
