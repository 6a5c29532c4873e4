"""An agent behind any server that speaks chat completions: OpenAI itself, vLLM, llama.cpp, transformers serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fate_gym.agents.pricing import Prices, check_prices, cost, shipped_prices
from fate_gym.env import Observation
from fate_gym.errors import ContextOverflowError, ProviderError, UsageError
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.serving.client import ChatClient, check_positive, given
from fate_gym.serving.retrying import RetryPolicy, TransientError, UnreachableError, UnusableError
from fate_gym.task import Task

_PROBE: Observation = {"messages": [{"role": "user", "content": "Reply with one word: ready"}]}


class OpenAIAgent(Agent):
    """A model behind chat completions.

    The observation goes out as it is, and the message comes back as it is: what a model does wrong is for the
    environment to judge. What a server does wrong is retried, and a conversation that no longer fits is a
    `ContextOverflowError`, at once. An answer beyond any model's length counts as the server's fault.

    One agent serves any number of episodes on one event loop; after `aclose` it may serve on another.

    Args:
        model: The model's name at the server.
        base_url: The server, such as "http://127.0.0.1:8000/v1"; None for OpenAI's own, whatever OPENAI_BASE_URL says,
            so that settings alone decide what is measured. A user and password in it go into a Basic Authorization
            header instead of the key, a query into every request.
        temperature: Left to the server if None, as are all options below.
        max_tokens: Tokens of one reply; sent as `max_completion_tokens` to OpenAI, where newer models refuse the other.
        seed: Sampling seed of the whole run; each episode's own is derived from it, so that repeats differ.
        reasoning_effort: Such as "low".
        parallel_tool_calls: Whether one message may hold several calls; sent only where there are tools.
        stream: Whether replies are streamed.
        timeout: Seconds for one whole request, however slowly its answer drips.
        max_attempts: Requests for one reply, the first included.
        requests_per_minute: Limit over all sessions, or None.
        extra_body: Further fields of each request; they win over all others.
        prices: USD per million tokens (`fate_gym.agents.pricing.Prices`), above the shipped ones, which hold for
            OpenAI's own server only.
        api_key_env: Environment variable that holds the key; a server of one's own may need none.
        backoff_seconds: Bound of the first wait between attempts.

    Raises:
        ValueError: An argument makes no sense, or the key is missing.
        UsageError: The openai package is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        reasoning_effort: str | None = None,
        parallel_tool_calls: bool | None = None,
        stream: bool = False,
        timeout: float = 120.0,
        max_attempts: int = 6,
        requests_per_minute: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        prices: Prices | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        backoff_seconds: float = 1.0,
    ) -> None:
        if not model:
            raise ValueError("the model needs a name, as in openai:gpt-4o-mini")
        check_positive(timeout=timeout, max_attempts=max_attempts, requests_per_minute=requests_per_minute)
        check_prices(prices or {})
        self.name = f"openai:{model}"
        self._model = model
        self._client = ChatClient(
            base_url, api_key_env=api_key_env, timeout=timeout, requests_per_minute=requests_per_minute
        )
        self._options = given(
            temperature=temperature,
            reasoning_effort=reasoning_effort,
            **{"max_tokens" if base_url else "max_completion_tokens": max_tokens},
        )
        self._seed = seed
        self._parallel_tool_calls = parallel_tool_calls
        self._stream = stream
        self._extra_body = dict(extra_body or {})
        self._prices = {**({} if base_url else shipped_prices()), **(prices or {})}
        self._policy = RetryPolicy(max_attempts, backoff_seconds)

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _Session(self, None if self._seed is None else (self._seed + seed) % 2**31)

    async def reply(self, observation: Observation, seed: int | None = None) -> Reply:
        """Answers one observation.

        Raises:
            ContextOverflowError: The conversation no longer fits the model's context.
            ProviderError: No usable answer came, after all attempts or for good; in one line, without secrets.
        """
        body = self._body(observation, seed)
        (message, usage), attempts = await self._policy.run(self._client.request, body)
        spent = cost(self._model, usage, self._prices)
        if spent is not None:
            usage["cost_usd"] = spent
        return Reply(message, usage, attempts)

    async def check(self) -> None:
        """Asks for one word, with the options of the run, to learn early of what no retry will mend.

        A busy or slow server passes.

        Raises:
            UsageError: The address, the key, the model or an option is wrong; in one line.
        """
        try:
            await self._client.request(self._body(_PROBE, self._seed))
        except (ProviderError, ContextOverflowError, UnreachableError, UnusableError) as error:
            raise UsageError(f"{self.name} cannot be used: {error}") from None
        except TransientError:
            return

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _body(self, observation: Observation, seed: int | None) -> dict[str, Any]:
        body = {"model": self._model, **observation, **self._options, **given(seed=seed)}
        if "tools" in observation:
            body |= given(parallel_tool_calls=self._parallel_tool_calls)
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **self._extra_body}


@dataclass(frozen=True, slots=True)
class _Session:
    agent: OpenAIAgent
    seed: int | None

    async def act(self, observation: Observation) -> Reply:
        return await self.agent.reply(observation, self.seed)
