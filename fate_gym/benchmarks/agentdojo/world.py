"""The world of one AgentDojo episode: its tools, and a state that is loaded at the first call."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentdojo.base_tasks import BaseUserTask
from agentdojo.functions_runtime import Function, TaskEnvironment

from fate_gym.benchmark import ToolOutcome, World
from fate_gym.benchmarks.agentdojo.execution import call_tool
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
from fate_gym.chat import Json, Message, ToolSchema
from fate_gym.transcript import CallRecord


@dataclass(frozen=True, slots=True)
class Start:
    """What every episode of one task begins with. Episodes share it, and nobody may change it."""

    opening: list[Message]
    tools: list[ToolSchema]
    injections: Mapping[str, str]
    payloads: tuple[str, ...]


class AgentDojoWorld(World):
    """One episode's world.

    Args:
        start: The opening, tools and injections of the task.
        functions: The suite's tools by name.
        template: Makes and loads states.
        user_task: May have an `init_environment` of its own.
    """

    def __init__(
        self,
        start: Start,
        functions: dict[str, Function[Any, Any]],
        template: SuiteTemplate,
        user_task: BaseUserTask[Any],
    ) -> None:
        self.opening = start.opening
        self.tools = start.tools
        self.injections = start.injections
        self.payloads = start.payloads
        self._initial = template.environment(start.injections)
        self._functions = functions
        self._template = template
        self._user_task = user_task
        self._environment: TaskEnvironment | None = None

    @property
    def environment(self) -> TaskEnvironment:
        """The state. It is loaded on first use, since many episodes end without a call."""
        if self._environment is None:
            self._environment = self.initial_environment()
        return self._environment

    def initial_environment(self) -> TaskEnvironment:
        """Returns a copy of the state before the first call."""
        return self._user_task.init_environment(self._template.load(self._initial))

    def replayed(self, calls: Iterable[CallRecord]) -> TaskEnvironment:
        """Returns the state that some recorded calls lead to; those that never ran change nothing."""
        state = self.initial_environment()
        for call in calls:
            if call.executed:
                call_tool(self._functions, state, call.name, call.arguments or {})
        return state

    def call(self, name: str, arguments: dict[str, Json]) -> ToolOutcome:
        """Runs a tool as AgentDojo's `ToolsExecutor` does."""
        return call_tool(self._functions, self.environment, name, arguments)

    def dump(self) -> bytes:
        """Returns the state; b"" stands for the initial one."""
        return b"" if self._environment is None else pickle.dumps(self._environment, protocol=5)

    def load(self, state: bytes) -> None:
        """Restores a state."""
        self._environment = self._template.load(state) if state else None
