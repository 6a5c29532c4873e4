"""The world of one AgentDojo episode: its tools, and a state whose parts are loaded when a tool asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentdojo.base_tasks import BaseUserTask
from agentdojo.functions_runtime import Function, TaskEnvironment

from fate_gym.benchmark import ToolOutcome, World
from fate_gym.benchmarks.agentdojo.execution import call_tool
from fate_gym.benchmarks.agentdojo.grading import share_same
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
        user_task: May have an `init_environment` of its own, which is called once for all episodes.
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
        own = user_task.init_environment
        self._initial = template.environment(start.injections, None if own is BaseUserTask.init_environment else own)
        self._functions = functions
        self._touched: TaskEnvironment | None = None

    @property
    def environment(self) -> TaskEnvironment:
        """The whole state, which the caller may change."""
        touched = self._touched_fields()
        self._initial.complete(touched, self._initial.load())
        return touched

    def states(self) -> tuple[TaskEnvironment, TaskEnvironment]:
        """Returns the states before the first call and after the last, for graders, which change neither.

        What no call has asked for, and what no call has changed, is one object in both.
        """
        before, after = self._initial.load(), self._touched_fields()
        self._initial.complete(after, before)
        share_same(before, after)
        return before, after

    def replayed(self, calls: Iterable[CallRecord], before: TaskEnvironment) -> TaskEnvironment:
        """Returns the state that some recorded calls lead to; those that never ran change nothing.

        Args:
            calls: The calls.
            before: The state before the first call; what no call asks for is taken from it.
        """
        state = self._initial.frame_alone()
        for call in calls:
            if call.executed:
                self._call(state, call.name, call.arguments or {})
        self._initial.complete(state, before)
        return state

    def call(self, name: str, arguments: dict[str, Json]) -> ToolOutcome:
        """Runs a tool as AgentDojo's `ToolsExecutor` does."""
        return self._call(self._touched_fields(), name, arguments)

    def dump(self) -> bytes:
        """Returns the state; b"" stands for the initial one."""
        return b"" if self._touched is None else self._initial.dump(self._touched)

    def load(self, state: bytes) -> None:
        """Restores a state."""
        self._touched = self._initial.restore(state) if state else None

    def _call(self, environment: TaskEnvironment, name: str, arguments: Mapping[str, Json]) -> ToolOutcome:
        if (function := self._functions.get(name)) is not None:
            self._initial.fill(environment, self._initial.needed_by(function))
        return call_tool(self._functions, environment, name, arguments)

    def _touched_fields(self) -> TaskEnvironment:
        """The state, of which only those fields are loaded that calls have asked for."""
        if self._touched is None:
            self._touched = self._initial.frame_alone()
        return self._touched
