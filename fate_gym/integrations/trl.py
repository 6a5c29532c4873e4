"""Tasks for TRL's own `GRPOTrainer`, through its `environment_factory`.

    tasks = trl_tasks("fate/AgentDojo-v0", suite="banking", attack="important_instructions", split="train")
    trainer = GRPOTrainer(
        model=...,
        train_dataset=Dataset.from_list(tasks.rows),
        environment_factory=tasks.environment_factory,
        reward_funcs=tasks.reward_funcs,
    )

TRL owns the loop: it runs each call through a method of an environment, and shows an environment neither messages nor
calls that it could not read. So a rollout is played twice. While TRL generates, the methods run tools in a world of
their own; when it is over, its messages are played again as an episode of ours, which gives the verdict: with calls
grouped in messages as they were, unknown tools and the final answer. Each axis is a reward function of TRL, and None,
which TRL leaves out of its sums, where it is not active.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, Union

import gymnasium as gym

from fate_gym._plain import replace_surrogates
from fate_gym.benchmark import World
from fate_gym.chat import Json, Message, ToolSchema
from fate_gym.env import ToolEnv
from fate_gym.rewards import AXES, Verdict

RewardFunction: TypeAlias = Callable[..., list[float | None]]

_TYPES: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@dataclass(frozen=True, slots=True)
class TRLTasks:
    """What `GRPOTrainer` takes of an environment.

    Attributes:
        rows: Rows of the data set: `prompt`, `environment`, `task_id`, `seed`.
        environment_factory: A class for each set of tools, by the name in the column `environment`.
        reward_funcs: One for each axis, in the order of `AXES` and named like it.
    """

    rows: list[dict[str, Any]]
    environment_factory: dict[str, type[Rollout]]
    reward_funcs: list[RewardFunction]


class Rollout:
    """One rollout of TRL. Its subclasses have a method for each tool: TRL makes a tool of every public method."""

    _env: ClassVar[ToolEnv]
    _world: World

    def reset(self, task_id: str, seed: int = 0, **row: Any) -> None:
        """Opens the world of a task. The prompt of the row holds the messages already."""
        self._task_id, self._seed = task_id, seed
        self._world = self._env.benchmark.open(task_id, seed)
        self._judged: tuple[Sequence[Message], Verdict] | None = None

    def _call(self, name: str, arguments: dict[str, Json]) -> str:
        return replace_surrogates(self._world.call(name, arguments).text)

    def _play(self, completion: Sequence[Message]) -> Verdict:
        env = self._env
        env.reset(seed=self._seed, options={"task_id": self._task_id})
        for message in completion:
            if message["role"] == "assistant":
                _, _, terminated, truncated, info = env.step(message)
                if terminated or truncated:
                    break
        else:
            info = env.truncate("trl_limit")[4]
        verdict: Verdict = info["verdict"]
        return verdict


def verdict_of(rollout: Rollout, completion: Sequence[Message]) -> Verdict:
    """Judges a finished rollout, once for all reward functions; yours may call it too.

    Args:
        rollout: One of the `environments` that TRL gives a reward function.
        completion: The one of its `completions` at the same place.
    """
    if rollout._judged is None or rollout._judged[0] is not completion:
        rollout._judged = completion, rollout._play(completion)
    return rollout._judged[1]


def trl_tasks(env_id: str, *, tasks: Sequence[str] | None = None, seed: int = 0, **options: Any) -> TRLTasks:
    """Makes what `GRPOTrainer` takes of an environment.

    Args:
        env_id: Gymnasium id of one of our environments.
        tasks: Ids of the tasks; all of the environment by default.
        seed: Seed of every episode.
        **options: Options of the environment.

    Raises:
        FateGymError: The benchmark's authors ask not to train on it.
        ValueError: A task is unknown, or an option makes no sense.
    """
    made: Any = gym.make(env_id, purpose="training", **options)
    env: ToolEnv = made.unwrapped
    rows: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    factories: dict[str, type[Rollout]] = {}
    for task_id in env.tasks if tasks is None else tasks:
        observation, _ = env.reset(seed=seed, options={"task_id": task_id})
        tools = observation.get("tools", [])
        suite = env.task(task_id).suite
        name = names.setdefault(json.dumps(tools), suite if suite not in factories else f"{suite} {len(factories)}")
        if name not in factories:
            factories[name] = _rollout_class(env, tools)
        rows.append({"prompt": observation["messages"], "environment": name, "task_id": task_id, "seed": seed})
    return TRLTasks(rows, factories, [_axis(name) for name in AXES])


def _rollout_class(env: ToolEnv, tools: Sequence[ToolSchema]) -> type[Rollout]:
    methods = {tool["function"]["name"]: _method(tool["function"]) for tool in tools}
    return type("Rollout", (Rollout,), {"_env": env, **methods})


def _method(tool: Mapping[str, Any]) -> Callable[..., str]:
    """Makes a method whose signature and docstring give TRL the tool's schema back."""
    name = tool["name"]

    def call(self: Rollout, /, **arguments: Json) -> str:
        return self._call(name, arguments)

    schema = tool.get("parameters") or {}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    definitions = schema.get("$defs", {})
    annotations = {key: _hint(value, definitions) for key, value in properties.items()}
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotations[key],
            default=inspect.Parameter.empty if key in required else value.get("default"),
        )
        for key, value in properties.items()
    ]
    call.__name__ = call.__qualname__ = name
    call.__annotations__ = annotations
    call.__doc__ = _docstring(tool.get("description", ""), properties)
    call.__signature__ = inspect.Signature([self_parameter, *parameters])  # type: ignore[attr-defined]
    return call


def _docstring(description: str, properties: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes a Google docstring, each text on one line: else words such as `Returns:` in it would end a section."""
    lines = [_one_line(description) or "No description."]
    if properties:
        lines += ["", "Args:"]
        lines += [f"    {key}: {_one_line(value.get('description', '')) or key}" for key, value in properties.items()]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _hint(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Returns the type hint of which transformers makes (about) this JSON schema again."""
    if "$ref" in schema:
        return _hint(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return Union[tuple(_hint(option, definitions) for option in options)]  # noqa: UP007 (made of a tuple)
    kind = schema.get("type")
    if isinstance(kind, list):
        return Union[tuple(_hint({**schema, "type": one}, definitions) for one in kind)]  # noqa: UP007
    if kind == "array" and schema.get("items"):
        return list[_hint(schema["items"], definitions)]  # type: ignore[misc]
    return _TYPES.get(str(kind), Any)


def _axis(name: str) -> RewardFunction:
    def reward(
        completions: Sequence[Sequence[Message]],
        environments: Sequence[Rollout],
        log_extra: Callable[[str, list[str]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        verdicts = [
            verdict_of(environment, completion)
            for completion, environment in zip(completions, environments, strict=True)
        ]
        if log_extra is not None and name == AXES[0]:
            log_extra("verdict", [json.dumps(verdict.to_json()) for verdict in verdicts])
        axes = [verdict.axes[name] for verdict in verdicts]
        return [axis.value if axis.active else None for axis in axes]

    reward.__name__ = name
    return reward
