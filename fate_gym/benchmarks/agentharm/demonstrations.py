"""A run that does what an AgentHarm record asks for, as far as its tools and their schemas tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fate_gym.benchmarks.agentharm.records import Record, ToolRecord
from fate_gym.benchmarks.agentharm.upstream import Tool
from fate_gym.task import Demonstration


def demonstrate(record: Record, tools: Mapping[str, Tool]) -> Demonstration:
    """Calls the target functions in order, each with arguments that its schema allows."""
    if not isinstance(record, ToolRecord):
        return Demonstration((), "Here is what you asked for.")
    calls = tuple((name, example(tools[name].parameters)) for name in record.target_functions)
    return Demonstration(calls, f"It is done, with {', '.join(record.target_functions)}.")


def example(schema: Mapping[str, Any], name: str = "example") -> Any:
    """Returns a value that a schema allows; texts say which parameter they fill."""
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {key: example(properties[key], key) for key in schema.get("required", ()) if key in properties}
        case "array":
            return [example(schema.get("items", {}), name)]
        case "integer":
            return 1
        case "number":
            return 1.0
        case "boolean":
            return True
    return f"an example {name.replace('_', ' ')}"
