"""An agent that calls random tools with random arguments, drawn from their schemas."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fate_gym.agents.scripted import ScriptedAgent
from fate_gym.chat import Json, Message
from fate_gym.env import Observation
from fate_gym.rollout import Reply, Session
from fate_gym.task import Task

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "1", "2024-05-15", "someone@example.com")
_STOP = 0.25
_MAX_ITEMS = 3


class RandomAgent(ScriptedAgent):
    """Calls tools at random and stops after a few messages; the same seed gives the same episode."""

    name = "random"

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _RandomSession(random.Random(f"{seed} {task.id}"))  # noqa: S311 (a policy, not a secret)


@dataclass(frozen=True, slots=True)
class _RandomSession:
    random: random.Random

    async def act(self, observation: Observation) -> Reply:
        tools = observation.get("tools")
        if not tools or self.random.random() < _STOP:
            return Reply({"role": "assistant", "content": self.random.choice(_WORDS)})
        function = self.random.choice(tools)["function"]
        schema = function["parameters"]
        arguments = sample(schema, schema.get("$defs", {}), self.random)
        call: Message = {"function": {"name": function["name"], "arguments": arguments}}
        return Reply({"role": "assistant", "content": "", "tool_calls": [call]})


def sample(schema: Mapping[str, Any], definitions: Mapping[str, Any], rng: random.Random) -> Json:
    """Draws a value that a JSON schema allows, as far as types and enumerations go."""
    if "$ref" in schema:
        return sample(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions, rng)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return sample(rng.choice(schema[choice]), definitions, rng)
    if "enum" in schema:
        choices: list[Json] = schema["enum"]
        return rng.choice(choices)
    if "const" in schema:
        constant: Json = schema["const"]
        return constant
    match schema.get("type", "object"):
        case "string":
            return rng.choice(_WORDS)
        case "integer":
            return rng.randint(0, 100)
        case "number":
            return round(rng.uniform(0, 1000), 2)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            items = schema.get("items", {"type": "string"})
            return [sample(items, definitions, rng) for _ in range(rng.randint(0, _MAX_ITEMS))]
    required = schema.get("required", ())
    properties = schema.get("properties", {})
    return {
        name: sample(part, definitions, rng)
        for name, part in properties.items()
        if name in required or rng.random() < 0.5
    }
