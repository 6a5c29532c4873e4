"""An agent behind any server that speaks chat completions: OpenAI itself, vLLM, llama.cpp, transformers serve."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fate_gym.agents.completions import read_completion, read_stream
from fate_gym.agents.pricing import Prices, check_prices, cost, shipped_prices
from fate_gym.agents.redaction import Redactor
from fate_gym.agents.retrying import Pacer, RetryPolicy, TransientError, UnreachableError, UnusableError, interpret
from fate_gym.chat import Message
from fate_gym.env import Observation
from fate_gym.errors import ContextOverflowError, FateGymError, ProviderError, UsageError
from fate_gym.evaluation.config import public_url
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"

_NO_KEY = "unused"
"""Goes to servers that ask for no key, since the client insists on one."""

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
        _require_packages()
        if not model:
            raise ValueError("the model needs a name, as in openai:gpt-4o-mini")
        limits = {"timeout": timeout, "max_attempts": max_attempts, "requests_per_minute": requests_per_minute}
        for name, number in limits.items():
            if number is not None and number <= 0:
                raise ValueError(f"{name} must be positive, got {number}")
        check_prices(prices or {})
        self.name = f"openai:{model}"
        self._model = model
        self._server = _Server.of(base_url, api_key_env)
        self._options = _given(
            temperature=temperature,
            reasoning_effort=reasoning_effort,
            **{"max_tokens" if base_url else "max_completion_tokens": max_tokens},
        )
        self._seed = seed
        self._parallel_tool_calls = parallel_tool_calls
        self._stream = stream
        self._timeout = timeout
        self._extra_body = dict(extra_body or {})
        self._prices = {**({} if base_url else shipped_prices()), **(prices or {})}
        self._policy = RetryPolicy(max_attempts, backoff_seconds)
        self._pacer = Pacer(requests_per_minute)
        self._client: openai.AsyncOpenAI | None = None

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
        (message, usage), attempts = await self._policy.run(self._request, body)
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
            await self._request(self._body(_PROBE, self._seed))
        except (ProviderError, ContextOverflowError, UnreachableError, UnusableError) as error:
            raise UsageError(f"{self.name} cannot be used: {error}") from None
        except TransientError:
            return

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
            self._server.redact.uninstall()

    def _body(self, observation: Observation, seed: int | None) -> dict[str, Any]:
        body = {"model": self._model, **observation, **self._options, **_given(seed=seed)}
        if "tools" in observation:
            body |= _given(parallel_tool_calls=self._parallel_tool_calls)
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **self._extra_body}

    async def _request(self, body: dict[str, Any]) -> tuple[Message, dict[str, float]]:
        """Makes one request.

        Raises:
            TransientError, ContextOverflowError, ProviderError: As `interpret` says.
        """
        await self._pacer.turn()
        try:
            # The client's own timeout is one of silence: a dripping answer would never meet it.
            async with asyncio.timeout(self._timeout):
                return await self._exchange(body)
        except (TransientError, FateGymError):
            raise
        except Exception as error:
            raise interpret(error, self._server.url, self._server.redact) from None

    async def _exchange(self, body: dict[str, Any]) -> tuple[Message, dict[str, float]]:
        """Posts a request and reads the answer as plain JSON.

        `chat.completions.create` posts the same; but it walks every tool schema before and builds models after, which
        doubles the time of a request and drops what does not fit the models.
        """
        import openai

        client = self._connect()
        if not self._stream:
            return read_completion(await client.post("/chat/completions", body=body, cast_to=object))
        stream = await client.post(
            "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        async with stream:
            return await read_stream(stream)

    def _connect(self) -> openai.AsyncOpenAI:
        import openai

        if self._client is None:
            server = self._server
            server.redact.install()
            self._client = openai.AsyncOpenAI(
                base_url=server.url,
                api_key=server.key,
                default_headers=server.headers,
                default_query=server.query,
                timeout=self._timeout,
                max_retries=0,
            )
        return self._client


@dataclass(frozen=True, slots=True)
class _Session:
    agent: OpenAIAgent
    seed: int | None

    async def act(self, observation: Observation) -> Reply:
        return await self.agent.reply(observation, self.seed)


@dataclass(frozen=True, slots=True, repr=False)
class _Server:
    """Where requests go, taken apart so that no secret stands in the address."""

    url: str
    key: str
    headers: dict[str, str]
    query: dict[str, str]
    redact: Redactor

    @classmethod
    def of(cls, base_url: str | None, api_key_env: str) -> _Server:
        key = os.environ.get(api_key_env)
        if not key and base_url is None:
            raise ValueError(f"no API key: set the environment variable {api_key_env}")
        given = OPENAI_URL if base_url is None else base_url
        url = public_url(given)
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must look like http://HOST:PORT/v1, got {url!r}")
        headers = {}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(url, key or _NO_KEY, headers, query, Redactor(key, given))


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None: the server has its own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _require_packages() -> None:
    try:
        import openai  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise UsageError(f"openai: agents need a package that is not installed: pip install {error.name}") from error
