"""An agent behind any server that speaks chat completions: OpenAI itself, vLLM, llama.cpp, transformers serve."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from fate_gym.agents._history import History, provider_fields
from fate_gym.agents._malformed import malformed_call
from fate_gym.agents._pricing import Prices, check_prices, cost, shipped_prices
from fate_gym.chat import Message
from fate_gym.env import Observation
from fate_gym.errors import (
    ContextOverflowError,
    EndlessReplyError,
    NoReplyError,
    ProviderError,
    QuotaError,
    UsageError,
)
from fate_gym.markup import holds_call_markup
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.serving import (
    ChatClient,
    Completion,
    ModelFaultError,
    RetryPolicy,
    TransientError,
    UnreachableError,
    UnusableError,
    check_positive,
    given,
)
from fate_gym.task import Task

DEFAULT_MAX_TOKENS: Final = 8192
"""Several times the longest answer that AgentDojo asks for; at 30 tokens a second it ends within the default timeout.
A model that thinks for longer needs more, and says so at the end of a run."""

FILTERED: Final = "I can't help with that: the provider's content filter stopped this turn."
"""What stands as the answer where a content filter fired. By rule and by judge it reads as a refusal."""

_SUSPICIOUSLY_SHORT: Final = 16_000
"""Characters of a first request, tools included, that fit into the context of any model with tools."""

_LONGEST_OUTAGE: Final = 300.0
"""Seconds for which nobody has reached a server before it is taken for gone, and the run ends. A server that is started
anew takes some minutes to load its model."""

_SYSTEM: Message = {"role": "system", "content": "You are a helpful assistant."}
_QUESTION: Message = {"role": "user", "content": "Reply with one word: ready"}
_TOOL: Message = {
    "type": "function",
    "function": {
        "name": "report_ready",
        "description": "Reports that you are ready.",
        "parameters": {"type": "object", "properties": {}},
    },
}

_log = logging.getLogger("fate_gym")

_Request: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[tuple[Completion, int]]]


class OpenAIAgent(Agent):
    """A model behind chat completions.

    What a server does wrong is retried, and then leaves the episode unscored. What a model does wrong is for the
    environment to judge, also where the server reports it as an error: a call that the server could not parse is an
    invalid turn, and a conversation that no longer fits or a reply that does not end truncates the episode. A turn
    that the provider's content filter stopped counts as a refusal (`content_filter`).

    Each session sends the server its own messages back as they came, with reasoning, signatures and call ids; the
    environment keeps a normalised form.

    One agent serves any number of episodes on one event loop; after `aclose` it may serve on another.

    Args:
        model: The model's name at the server.
        base_url: The server, such as "http://127.0.0.1:8000/v1"; None for OpenAI's own, whatever OPENAI_BASE_URL says,
            so that settings alone decide what is measured. A user and password in it go into a Basic Authorization
            header instead of the key, a query into every request.
        temperature: Left to the server if None, as are seed, reasoning_effort and parallel_tool_calls.
        max_tokens: Tokens of one reply; sent as `max_completion_tokens` to OpenAI, where newer models refuse the
            other. A server that does not take the default is asked without it. None for no limit, with which a model
            that never ends its reply holds up its episode until the timeout.
        seed: Sampling seed of the whole run; each episode's own is derived from it, so that repeats differ.
        reasoning_effort: Such as "low".
        parallel_tool_calls: Whether one message may hold several calls; sent only where there are tools.
        stream: Whether replies are streamed.
        timeout: Seconds for one whole request, however slowly its answer drips.
        max_attempts: Requests for one reply, the first included.
        requests_per_minute: Limit over all sessions, or None.
        content_filter: What a turn is that the provider's content filter stopped: a "refusal" of the provider, which
            is scored, or an "error", which leaves the episode unscored.
        extra_body: Further fields of each request; they win over all others.
        prices: USD per million tokens, as `{MODEL: {input: 1.0, output: 2.0, cached: 0.5}}` (`cached` only where it
            differs from `input`), above the shipped ones, which hold for OpenAI's own server only.
        api_key_env: Environment variable that holds the key; a server that you run may need none.
        backoff_seconds: Bound of the first wait between attempts.

    Raises:
        ValueError: An argument makes no sense, or the key is missing.
        UsageError: A package is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        seed: int | None = None,
        reasoning_effort: str | None = None,
        parallel_tool_calls: bool | None = None,
        stream: bool = False,
        timeout: float = 300.0,
        max_attempts: int = 6,
        requests_per_minute: float | None = None,
        content_filter: Literal["refusal", "error"] = "refusal",
        extra_body: Mapping[str, Any] | None = None,
        prices: Prices | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        backoff_seconds: float = 1.0,
    ) -> None:
        if not model:
            raise ValueError("the model needs a name, as in openai:gpt-4o-mini")
        if content_filter not in ("refusal", "error"):
            raise ValueError(f"content_filter must be 'refusal' or 'error', got {content_filter!r}")
        check_positive(timeout=timeout, max_attempts=max_attempts, requests_per_minute=requests_per_minute)
        check_positive(max_tokens=max_tokens)
        check_prices(prices or {})
        self.name = f"openai:{model}"
        self._model = model
        self._client = ChatClient(
            base_url, api_key_env=api_key_env, timeout=timeout, requests_per_minute=requests_per_minute
        )
        self._options = given(temperature=temperature, reasoning_effort=reasoning_effort)
        self._extra_body = dict(extra_body or {})
        limits = {"max_tokens", "max_completion_tokens"} & self._extra_body.keys()
        self._limit = {} if limits else given(**{"max_tokens" if base_url else "max_completion_tokens": max_tokens})
        self._limit_is_default = max_tokens == DEFAULT_MAX_TOKENS
        self._seed = seed
        self._parallel_tool_calls = parallel_tool_calls
        self._stream = stream
        self._content_filter = content_filter
        self._prices = {**({} if base_url else shipped_prices()), **(prices or {})}
        self.unpriced = self.cost({"prompt_tokens": 1, "completion_tokens": 1}) is None
        self._policy = RetryPolicy(max_attempts, backoff_seconds)
        self._refused_fields: frozenset[str] = frozenset()
        self._oddities: Counter[str] = Counter()
        self._unreached_since: float | None = None

    def cost(self, usage: Mapping[str, float]) -> float | None:
        """Returns what so many tokens cost, in USD; None where the price of the model is unknown."""
        return cost(self._model, usage, self._prices)

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return _Session(self, None if self._seed is None else (self._seed + seed) % 2**31)

    async def reply(self, observation: Observation, seed: int | None = None, history: History | None = None) -> Reply:
        """Answers one observation.

        Args:
            observation: The conversation and the tools.
            seed: Sampling seed, or None.
            history: What the server has sent before in this conversation; the reply is added to it.

        Raises:
            ContextOverflowError: The conversation no longer fits the model's context.
            EndlessReplyError: The model does not end its reply.
            QuotaError: The server serves no more today, or is gone.
            ProviderError: No usable answer came, after all attempts or for good; in one line, without secrets.
        """
        history = history or History()
        if self.exhausted is not None:
            raise QuotaError(self.exhausted)
        try:
            completion, attempts = await self._complete(observation, seed, history, self._with_retries)
        except ModelFaultError as fault:
            return self._reply_for(fault)
        except ProviderError as error:
            if isinstance(error, QuotaError) or self._is_gone():
                self.exhausted = str(error)
            raise
        except ContextOverflowError:
            self._note_early_overflow(observation)
            raise
        history.remember(len(observation["messages"]), completion.message)
        self._note_oddities(completion)
        usage = self._with_cost(completion.usage)
        message = completion.message
        if completion.finish_reason is not None:
            message = {**message, "finish_reason": completion.finish_reason}
        return Reply(message, usage, attempts, finish_reason=completion.finish_reason)

    async def check(self, *, tools: bool = False) -> None:
        """Asks for one word, with the options of the run, to learn early of what no retry will mend.

        A busy or slow server passes.

        Args:
            tools: Whether the run's environments have tools, so that the server must take them.

        Raises:
            UsageError: The address, the key, the model or an option is wrong, or the server takes no system message
                or no tools; in one line, with the server's words.
        """
        self.exhausted = self._unreached_since = None
        probe: Observation = {"messages": [_SYSTEM, _QUESTION], **({"tools": [_TOOL]} if tools else {})}
        try:
            await self._complete(probe, self._seed, History(), self._once)
        except (ProviderError, ContextOverflowError, UnreachableError, UnusableError) as error:
            raise UsageError(f"{self.name} cannot be used: {error}") from None
        except (TransientError, ModelFaultError):
            return

    async def aclose(self) -> None:
        """Closes the connections, and says what in the replies points to a server that is not set up well."""
        await self._client.aclose()
        for oddity, count in self._oddities.items():
            _log.warning("%s: %s (%d times)", self.name, oddity, count)
        self._oddities.clear()

    async def _with_retries(self, body: Mapping[str, Any]) -> tuple[Completion, int]:
        return await self._policy.run(self._request, body)

    async def _once(self, body: Mapping[str, Any]) -> tuple[Completion, int]:
        return await self._request(body), 1

    async def _request(self, body: Mapping[str, Any]) -> Completion:
        """Makes one request, and notes since when nobody has reached the server."""
        try:
            completion = await self._client.request(body)
        except UnreachableError:
            self._unreached_since = self._unreached_since or time.monotonic()
            raise
        except Exception:
            self._unreached_since = None
            raise
        self._unreached_since = None
        return completion

    def _is_gone(self) -> bool:
        return self._unreached_since is not None and time.monotonic() - self._unreached_since > _LONGEST_OUTAGE

    async def _complete(
        self, observation: Observation, seed: int | None, history: History, request: _Request
    ) -> tuple[Completion, int]:
        """Asks, and asks again without what the server refuses of what the agent adds of its own accord."""
        limit, spent = dict(self._limit), 0
        while True:
            messages = history.restore(observation["messages"], self._refused_fields)
            try:
                completion, attempts = await request(self._body({**observation, "messages": messages}, seed, limit))
            except NoReplyError as failure:
                spent = failure.attempts = failure.attempts + spent
                if not self._concede(failure, messages, limit):
                    raise
            else:
                return completion, spent + attempts

    def _concede(self, failure: NoReplyError, messages: list[Message], limit: dict[str, int]) -> bool:
        """Gives up what the server has refused; returns whether there is anything to give up.

        Args:
            failure: What the server said.
            messages: The conversation that was sent.
            limit: The limit of tokens that was sent; emptied where the server may find room without it.
        """
        if limit and self._limit_is_default:
            if isinstance(failure, ContextOverflowError):
                # Many servers count the limit as a part of the context, even if the reply will be short.
                limit.clear()
                return True
            if isinstance(failure, ProviderError) and re.search("max_(completion_)?tokens", str(failure)):
                self._limit = {}
                limit.clear()
                return True
        if not isinstance(failure, ProviderError):
            return False
        # Some servers refuse what they have sent themselves (Groq: "property 'reasoning' is unsupported").
        named = {field for field in provider_fields(messages) if field in str(failure)}
        self._refused_fields |= named
        return bool(named)

    def _reply_for(self, fault: ModelFaultError) -> Reply:
        """Returns the turn that a fault of the model, or of a filter on it, counts as.

        Raises:
            EndlessReplyError: The reply did not end, so the episode cannot go on.
            ProviderError: A filter fired, and that is to be an error.
        """
        if fault.kind == "endless":
            raise EndlessReplyError(str(fault), fault.attempts)
        if fault.kind == "content_filter" and self._content_filter == "error":
            raise ProviderError(f"a content filter fired: {fault}", fault.attempts)
        # A server does not charge for an answer that is an error.
        usage = self._with_cost(fault.usage or {"prompt_tokens": 0, "completion_tokens": 0})
        if fault.kind == "content_filter":
            message: Message = {"role": "assistant", "content": FILTERED, "provider_said": str(fault)}
            message |= given(filtered_content=fault.text or None)
        else:
            message = malformed_call(fault.text, str(fault))
        return Reply({**message, "finish_reason": fault.kind}, usage, fault.attempts, finish_reason=fault.kind)

    def _note_oddities(self, completion: Completion) -> None:
        if completion.finish_reason == "length":
            self._oddities["replies were cut at the limit of tokens; a larger max_tokens lets the model finish"] += 1
        if not _is_plausible(completion.usage):
            self._oddities["token counts that cannot be true were left out"] += 1
        content = completion.message.get("content")
        if isinstance(content, str) and not completion.message.get("tool_calls") and holds_call_markup(content):
            self._oddities[
                "tool calls stood in the text of replies: the server needs a tool parser for this model "
                "(vLLM: --enable-auto-tool-choice --tool-call-parser NAME; llama.cpp: --jinja)"
            ] += 1

    def _with_cost(self, usage: dict[str, float]) -> dict[str, float]:
        """Returns the usage with its cost, where the price is known and the counts can be true."""
        spent = self.cost(usage) if _is_plausible(usage) else None
        return usage | given(cost_usd=spent)

    def _note_early_overflow(self, observation: Observation) -> None:
        """Notes where the server says that the first, short request does not fit: it may mean something else."""
        first = not any(message["role"] == "assistant" for message in observation["messages"])
        if first and len(json.dumps(observation)) < _SUSPICIOUSLY_SHORT:
            self._oddities[
                f"a first request of less than {_SUSPICIOUSLY_SHORT} characters was refused as too long for the "
                "context, which is hard to believe: look at what the server says; the episode counts as truncated"
            ] += 1

    def _body(self, observation: Observation, seed: int | None, limit: Mapping[str, int]) -> dict[str, Any]:
        body = {"model": self._model, **observation, **self._options, **limit, **given(seed=seed)}
        if "tools" in observation:
            body |= given(parallel_tool_calls=self._parallel_tool_calls)
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **self._extra_body}


def _is_plausible(usage: Mapping[str, float]) -> bool:
    return not any(math.isnan(count) for count in usage.values())


class _Session:
    """One episode: the conversation in the server's own form."""

    def __init__(self, agent: OpenAIAgent, seed: int | None) -> None:
        self._agent = agent
        self._seed = seed
        self._history = History()

    async def act(self, observation: Observation) -> Reply:
        return await self._agent.reply(observation, self._seed, self._history)
