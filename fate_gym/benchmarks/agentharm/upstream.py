"""AgentHarm's tools, graders and prompts from inspect_evals, loaded on first use, which takes seconds."""

from __future__ import annotations

import contextvars
import importlib.metadata
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

from fate_gym.chat import Json, ToolSchema
from fate_gym.errors import UsageError
from fate_gym.verifiers.fence import fenced

T = TypeVar("T")

Kind = Literal["harmful", "benign"]
"""The two packages of tools and graders; names repeat between them, with other behaviour."""

Grader: TypeAlias = Callable[[dict[str, Any], list[Any]], Awaitable[dict[str, Any]]]
"""(record with "semantic_judge", inspect's chat messages) -> criterion -> bool or number."""

STATE = ("random", "audit_logs")
"""Globals of the tools' modules that a call changes; each world has objects of its own in their place."""

_IMPORT_WARNING = "`__get_validators__` is deprecated"
"""inspect_evals triggers it in one of its dependencies; a user of fate-gym can do nothing about it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        schema: As inspect sends it to OpenAI's API.
        validator: Draft 7 of JSON Schema, over its arguments.
        function: The tool's coroutine function, which awaits nothing.
    """

    schema: ToolSchema
    validator: Any
    function: FunctionType

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        parameters: dict[str, Any] = self.schema["function"]["parameters"]
        return parameters

    def complaint(self, arguments: Mapping[str, Json]) -> str | None:
        """Returns what inspect would say of wrong arguments, or None."""
        errors = [f"- {error.message}" for error in self.validator.iter_errors(arguments)]
        if not errors:
            return None
        return "\n".join([f"Found {len(errors)} validation errors parsing tool input arguments:", *errors])

    def run(self, arguments: Mapping[str, Any], state: Mapping[str, Any]) -> str:
        """Runs the tool; `state` stands in place of the module's own objects of these names.

        Raises:
            Exception: Whatever the tool raises.
        """
        function = self.function
        replaced = {name: state[name] for name in STATE if name in function.__globals__}
        if replaced:
            function = _with_globals(function, {**function.__globals__, **replaced})
        return str(drive(function(**arguments)))


@dataclass(frozen=True, slots=True)
class Package:
    """Tools and graders of one kind, by name."""

    tools: Mapping[str, Tool]
    graders: Mapping[str, Grader]


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that awaits nothing outside itself, without an event loop.

    Raises:
        RuntimeError: It does await.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("AgentHarm's code awaits something, which fate-gym does not expect of this version")


def drive_grader(grader: Grader, record: dict[str, Any], messages: list[Any]) -> dict[str, Any]:
    """Runs a grader in a context of its own: inspect keeps what is logged there, for as long as the context lives."""
    graded: dict[str, Any] = contextvars.copy_context().run(drive, grader(record, messages))  # type: ignore[arg-type]
    return graded


@cache
def package(kind: Kind) -> Package:
    """Loads tools and graders.

    Raises:
        UsageError: inspect_evals is not installed.
    """
    with _imported():
        from inspect_ai.tool import ToolDef
        from inspect_evals.agentharm import benchmark
        from inspect_evals.agentharm.benchmark import (
            benign_grading_functions,
            benign_tools,
            harmful_grading_functions,
            harmful_tools,
        )
        from jsonschema import Draft7Validator
    tools_package = harmful_tools if kind == "harmful" else benign_tools
    graders = harmful_grading_functions if kind == "harmful" else benign_grading_functions
    # Their paths begin with "benchmark/".
    root = Path(next(iter(benchmark.__path__))).parent
    tools = {}
    for name in sorted(tools_package.__all__):
        made = getattr(tools_package, name)()
        definition = ToolDef(made)
        parameters = definition.parameters.model_dump(exclude_none=True)
        function = {"name": definition.name, "description": definition.description, "parameters": parameters}
        tools[definition.name] = Tool(
            schema={"type": "function", "function": function},
            validator=Draft7Validator(parameters),
            function=_with_globals(made, _at_home(made.__globals__, root)),
        )
    return Package(tools, _fenced_graders(graders))


def _fenced_graders(module: ModuleType) -> dict[str, Grader]:
    """Returns the graders of a module, with globals in which the judge is asked with a fence around what it judges."""
    own = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            own[name] = _with_globals(value, own)
    own["semantic_judge"] = _semantic_judge
    return {name: grader for name, grader in own.items() if name.startswith("grade_")}


async def _semantic_judge(prompt: str, message: Any, model: Any) -> str:
    """Stands in place of upstream's function of this name, which puts the text right behind the question."""
    if message in ("", {}, None):
        return "fail"
    said: str = model.ask(f"{prompt}\n\n{fenced(str(message))}")
    return said


def prompt_techniques() -> tuple[str, ...]:
    """Names of the additions to the system prompt."""
    return tuple(_prompts().prompt_technique_dict)


def opening(prompt: str, technique: str) -> list[dict[str, Any]]:
    """The messages that an episode starts with: upstream's system prompt, and the prompt in its empty template."""
    prompts = _prompts()
    return [
        {"role": "system", "content": prompts.get_system_prompt("default", technique)},
        {"role": "user", "content": prompts.get_jailbreak_template("empty").replace("{prompt}", prompt)},
    ]


@cache
def refusal_question() -> str:
    """The refusal judge's prompt, with `{generation}` where the agent's text goes."""
    with _imported():
        from inspect_evals.agentharm.scorer import DEFAULT_REFUSAL_PROMPT
    # Upstream's tags can be closed by the text between them: a fence stands in their place (`verifiers.fence`).
    question: str = DEFAULT_REFUSAL_PROMPT.replace("(contained in the <response> tags) ", "")
    return question.replace("<response>{generation}</response>", "{generation}")


@cache
def versions() -> dict[str, str]:
    """Versions of what the scores depend on."""
    with _imported():
        from inspect_evals.metadata import load_eval_metadata
    return {
        "inspect_evals": importlib.metadata.version("inspect-evals"),
        "inspect_ai": importlib.metadata.version("inspect-ai"),
        "agentharm": str(load_eval_metadata("agentharm").version),
    }


@cache
def _prompts() -> ModuleType:
    with _imported():
        from inspect_evals.agentharm import prompts
    module: ModuleType = prompts
    return module


@contextmanager
def _imported() -> Iterator[None]:
    """For imports of inspect: without its warning, and with one line where it is missing.

    Only around what is cached: filters of warnings are the process's, and episodes run in threads.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_IMPORT_WARNING)
            yield
    except ImportError as error:
        raise UsageError(
            f"AgentHarm's tools and graders are not installed ({error}): pip install 'fate-gym[agentharm]'"
        ) from error


def _at_home(namespace: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Returns a copy of a module's globals that finds bundled files from any directory, not only from `root`."""
    own = dict(namespace)
    if "files" in own:
        own["files"] = {name: str(root / path) for name, path in own["files"].items()}
    if reader := own.get("read_file_content"):
        own["read_file_content"] = lambda path: reader(str(root / path))
    return own


def _with_globals(function: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    """Returns the same function with other globals, so that nothing in upstream's modules is ever changed."""
    twin = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
