"""Agents that speak with their model in token ids, wherever the model runs: what training needs of an agent.

A conversation is written as ids by the chat template, and goes on from the very ids that were sampled: nothing is ever
tokenised again. What generates is a function from a prompt to a completion.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fate_gym.agents.chat_format import ChatFormat, one_line
from fate_gym.chat import Message, ToolSchema
from fate_gym.env import Observation
from fate_gym.episode import Sample
from fate_gym.errors import ContextOverflowError, UsageError
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to go on from.

    Attributes:
        prompt_ids: Token ids, (p,).
        seed: Decides the sample, whatever else is in the batch.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(slots=True)
class Completion:
    """What was generated.

    Attributes:
        token_ids: Sampled ids, (t,); the last one is a stop token unless the limit was reached.
        logprobs: Natural-log probability of each under the sampling distribution, (t,).
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Engine:
    """A model that is ready to answer.

    Attributes:
        chat: How its conversations are written and read.
        max_prompt: Most tokens of a prompt, None without limit.
        generate: Samples a completion.
    """

    chat: ChatFormat
    max_prompt: int | None
    generate: Callable[[GenerationRequest], Awaitable[Completion]]


class TokenAgent(Agent):
    """An agent whose replies carry their token ids and log-probabilities. Its engine is made on first use.

    Args:
        name: Stands in results.
        seed: Decides the samples, together with the episode's task and seed.
    """

    unpriced = True

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self._loading = threading.Lock()
        self._engine: Engine | None = None

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _TokenSession(self, f"{self.seed}/{task.id}/{seed}")

    async def check(self, *, tools: bool = False) -> None:
        """Makes the engine.

        Raises:
            UsageError: The model cannot be used as an agent; one line says why.
        """
        await self.engine()

    async def engine(self) -> Engine:
        """The model, ready to answer."""
        if self._engine is None:
            return await asyncio.to_thread(self._load)
        return self._engine

    async def aclose(self) -> None:
        """Lets go of the model."""
        self._engine = None

    @abstractmethod
    def _make_engine(self) -> Engine:
        """Loads what is needed; whatever it raises is reported as a `UsageError`."""

    def _load(self) -> Engine:
        with self._loading:
            engine = self._engine = self._engine or self._made()
            return engine

    def _made(self) -> Engine:
        try:
            return self._make_engine()
        except ModuleNotFoundError as error:
            raise UsageError(f"{self.name} needs {error.name}: pip install 'fate-gym[local]'") from error
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from error
        except Exception as error:
            # Whatever trips the loaders up lies in what the user named.
            raise UsageError(f"{self.name}: {one_line(error)}") from error


class _TokenSession:
    """One episode. A turn's prompt is the last one with what was sampled and what came since, as token ids."""

    def __init__(self, agent: TokenAgent, key: str) -> None:
        self._agent = agent
        self._key = key
        self._turn = 0
        self._messages: list[Message] = []
        self._tools: list[ToolSchema] | None = None
        self._ids: tuple[int, ...] = ()

    async def act(self, observation: Observation) -> Reply:
        engine = await self._agent.engine()
        messages, tools = observation["messages"], observation.get("tools")
        prompt_ids = await asyncio.to_thread(self._prompt, engine.chat, messages, tools)
        if engine.max_prompt is not None and len(prompt_ids) > engine.max_prompt:
            raise ContextOverflowError(f"a prompt of {len(prompt_ids)} tokens, where {engine.max_prompt} fit")
        seed = random.Random(f"{self._key}/{self._turn}").getrandbits(63)  # noqa: S311 (no secret)
        completion = await engine.generate(GenerationRequest(prompt_ids, seed))
        sampled = Sample(prompt_ids, tuple(completion.token_ids), tuple(completion.logprobs))
        message = await asyncio.to_thread(engine.chat.read, sampled.prompt_ids, sampled.token_ids, tools)
        self._turn += 1
        self._messages, self._tools, self._ids = messages, tools, prompt_ids + sampled.token_ids
        usage: dict[str, float] = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(sampled.token_ids)}
        return Reply(message, usage, sample=sampled)

    def _prompt(self, chat: ChatFormat, messages: list[Message], tools: list[ToolSchema] | None) -> tuple[int, ...]:
        """Appends to the last turn; writes everything anew where the past is not what it was (a defence, a fork)."""
        known = len(self._messages)
        if self._ids and messages[:known] == self._messages and tools == self._tools:
            added = chat.continuation(messages, known, tools, ended=self._ids[-1] in chat.stop_ids)
            if added is not None:
                return self._ids + added
        return chat.prompt(messages, tools)
