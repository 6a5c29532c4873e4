"""One tool call on an AgentDojo environment, with AgentDojo's own effects and texts, and no way to crash."""

import ast
import re
from collections.abc import Mapping
from typing import Any, Literal

from agentdojo.functions_runtime import Function, FunctionsRuntime, TaskEnvironment

from fate_gym.benchmark import ToolOutcome
from fate_gym.benchmarks.agentdojo._lazy_agents import EMPTY_FUNCTION_NAME
from fate_gym.benchmarks.agentdojo.determinism import deterministic
from fate_gym.benchmarks.agentdojo.emails import remembered_emails
from fate_gym.benchmarks.agentdojo.formatting import format_result

_LONGEST_LITERAL = 100_000
# Pydantic writes paragraphs for each wrong element of a list: fifty times what a hostile model has to send.
_LONGEST_ERROR = 100_000
# Pydantic's errors link to its documentation of its own version: the same error would read differently after an update.
_VERSIONED_LINK = re.compile(r"\n +For further information visit https://errors\.pydantic\.dev/\S*")


def call_tool(
    functions: Mapping[str, Function], environment: TaskEnvironment, name: str, arguments: Mapping[str, Any]
) -> ToolOutcome:
    """Execute one call as `agentdojo.agent_pipeline.tool_execution.ToolsExecutor.query` does.

    Args:
        functions: Tool name -> tool.
        environment: The environment that the tool reads and changes, in place.
        name: The tool's name as requested.
        arguments: The arguments as requested; they are not changed.

    Returns:
        The outcome. Nothing but KeyboardInterrupt and SystemExit is ever raised.
    """
    if name == EMPTY_FUNCTION_NAME:
        return ToolOutcome(
            "unknown_tool", "Empty function name provided. Provide a valid function name.", dict(arguments)
        )
    if name not in functions:
        return ToolOutcome("unknown_tool", f"Invalid tool {name} provided.", dict(arguments))
    coerced = {key: _as_list(value) for key, value in arguments.items()}
    try:
        runtime = FunctionsRuntime()
        runtime.functions = dict(functions)
        with deterministic(), remembered_emails():
            result, error = runtime.run_function(environment, name, coerced)
            text = "" if error else format_result(result)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as escaped:
        error = f"{type(escaped).__name__}: {escaped}"
    if not error:
        return ToolOutcome("ok", text, coerced)
    kind: Literal["bad_arguments", "tool_error"] = "tool_error" if _valid(functions[name], coerced) else "bad_arguments"
    return ToolOutcome(kind, _VERSIONED_LINK.sub("", error[:_LONGEST_ERROR]), coerced)


def _as_list(value: Any) -> Any:
    """The list that a string spells in Python, or the value as it is."""
    if not isinstance(value, str) or len(value) > _LONGEST_LITERAL or "[" not in value:
        return value
    try:
        parsed = ast.literal_eval(value)
    except Exception:  # upstream lets all but ValueError and SyntaxError escape, e.g. MemoryError for deep nesting
        return value
    return parsed if isinstance(parsed, list) else value


def _valid(function: Function, arguments: dict[str, Any]) -> bool:
    try:
        function.parameters.model_validate(arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a ValidationError, or what a hostile value makes the validator raise, a panic of Rust's too
        return False
    return True
