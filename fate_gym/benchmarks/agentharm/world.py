"""The world of one AgentHarm episode: tools, what they remember, and their randomness."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any, Final

from fate_gym.benchmark import ToolOutcome
from fate_gym.benchmark import World as BaseWorld
from fate_gym.benchmarks.agentharm.upstream import Tool
from fate_gym.chat import Json, Message

MAX_OUTPUT: Final = 16 * 1024
"""Bytes of a tool's answer that inspect shows."""

_CONVERT: Final[dict[str, type]] = {"string": str, "integer": int, "number": float}


class AgentHarmWorld(BaseWorld):
    """One episode's world.

    Args:
        opening: The messages that the episode starts with.
        tools: By name, in the order in which they are offered.
        seed: Seeds the random numbers that the tools use.
    """

    def __init__(self, opening: list[Message], tools: Mapping[str, Tool], seed: int) -> None:
        self.opening = opening
        self.tools = [tool.schema for tool in tools.values()]
        self.injections: Mapping[str, str] = {}
        self.payloads = ()
        self._tools = tools
        self._random = _CountedRandom(seed)
        self._audit_logs: list[dict[str, str]] = []

    def call(self, name: str, arguments: dict[str, Json]) -> ToolOutcome:
        """Validates and runs a call as inspect does; where its sample would crash, the tool's error is the answer."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolOutcome("unknown_tool", f"Tool {name} not found", arguments)
        complaint = tool.complaint(arguments)
        if complaint is not None:
            return ToolOutcome("bad_arguments", complaint, arguments)
        try:
            converted = {key: _convert(value, tool.parameters["properties"][key]) for key, value in arguments.items()}
        except (ValueError, OverflowError) as error:
            return ToolOutcome("bad_arguments", f"Unable to convert an argument: {error}", arguments)
        try:
            text = tool.run(converted, {"random": self._random, "audit_logs": self._audit_logs})
        except Exception as error:
            return ToolOutcome("tool_error", str(error) or type(error).__name__, arguments)
        return ToolOutcome("ok", shortened(name, text), arguments)

    def dump(self) -> bytes:
        """Returns the state: what the tools recorded, and how many random draws they made."""
        return json.dumps([self._random.draws, self._audit_logs]).encode()

    def load(self, state: bytes) -> None:
        """Restores a state.

        Raises:
            ValueError: The bytes are not a state.
        """
        draws, audit_logs = json.loads(state)
        if type(draws) is not int or not isinstance(audit_logs, list):
            raise ValueError("the world's state must be a number of draws and a list")
        self._random.draws, self._audit_logs = draws, audit_logs


class _CountedRandom:
    """Stands in place of the module `random`; each draw has a seed of its own, so that a count is the whole state."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.draws = 0

    def __getattr__(self, name: str) -> Any:
        draw = getattr(random.Random(f"{self._seed}/{self.draws}"), name)  # noqa: S311 (a simulated world)
        self.draws += 1
        return draw


def shortened(name: str, text: str) -> str:
    """Cuts the middle out of a long answer, in inspect's words."""
    encoded = text.encode()
    if len(encoded) <= MAX_OUTPUT:
        return text
    half = MAX_OUTPUT // 2
    kept = encoded[:half].decode(errors="ignore") + encoded[-half:].decode(errors="ignore")
    return (
        f"\nThe output of your call to {name} was too long to be displayed.\nHere is a truncated version:\n"
        f"<START_TOOL_OUTPUT>\n{kept}\n<END_TOOL_OUTPUT>\n"
    )


def _convert(value: Any, schema: Mapping[str, Any]) -> Any:
    """Converts a valid argument to the type that the tool declares, as inspect does: 5 to 5.0 for a number."""
    if schema.get("type") == "array":
        return [_convert(item, schema["items"]) for item in value]
    kind = _CONVERT.get(schema.get("type", ""))
    return value if kind is None else kind(value)
