"""AgentDojo's registry of suites, read without its side effects."""

import importlib

from agentdojo.task_suite.load_suites import _SUITES
from agentdojo.task_suite.task_suite import TaskSuite

for _module in ("v1.slack.injection_tasks", "v1_1_2.workspace.user_tasks"):
    # Graders of theirs print what they find, into the midst of what a command prints.
    vars(importlib.import_module(f"agentdojo.default_suites.{_module}"))["print"] = lambda *values: None


def versions() -> tuple[str, ...]:
    """Every benchmark version that holds a suite, in the order of registration."""
    return tuple(version for version, suites in _SUITES.items() if suites)


def suites(version: str) -> dict[str, TaskSuite]:
    """The suites of one benchmark version.

    Args:
        version: A version as AgentDojo writes it, e.g. `"v1.2.2"`.

    Returns:
        A new dictionary of suite name -> suite. The suites themselves are AgentDojo's shared objects.

    Raises:
        ValueError: If no suite is registered for the version.
    """
    # AgentDojo's own `get_suites` adds an empty entry for a version that it does not know: `_SUITES` is a defaultdict.
    if version not in versions():
        raise ValueError(f"AgentDojo has no benchmark version {version!r}; it has {', '.join(versions())}.")
    return dict(_SUITES[version])
