"""A model behind an OpenAI-compatible server that is asked in token ids, so that training can learn from its samples.

`openai:` sends messages, and the server writes and reads them by templates of its own. Here the conversation is written
and read on this side, with the policy's own tokenizer, exactly as `LocalAgent` does it; the server gets ids
(`/completions` takes them as a prompt) and gives back the ids that it sampled and their log-probabilities. vLLM does
so since 0.10.2 (`return_token_ids`).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from fate_gym.agents._token_agent import Completion, Engine, GenerationRequest, TokenAgent
from fate_gym.agents.chat_format import ChatFormat
from fate_gym.agents.local import load_tokenizer, max_prompt, short, stop_ids
from fate_gym.agents.marks import contamination
from fate_gym.agents.response_templates import choose_response_template
from fate_gym.errors import ProviderError
from fate_gym.serving import ChatClient, NotFoundError, RetryPolicy, UnusableError

T = TypeVar("T")

_UNCHANGED: Final = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""A server takes these from the model's own settings unless they are sent, and would sample from another distribution
than the one whose log-probabilities are learned from."""


class ServedAgent(TokenAgent):
    """A causal language model at a server, played in token ids.

    Args:
        policy: The model as a folder or an id on the hub: its tokenizer, chat template and limits are read, never its
            weights.
        client: The server.
        served: The name of the weights at the server. A reply of any other is not learned from.
        restore: Called where the server no longer knows that name, as after a restart; it brings the weights back.
        retry: How often a request is made. A server that restarts takes minutes.
        temperature: As in `LocalAgent`, as are the others. Other temperatures than 1 need a server that reports the
            log-probabilities of the distribution that it samples from (vLLM: `--logprobs-mode processed_logprobs`).

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        policy: str,
        client: ChatClient,
        served: str,
        *,
        restore: Callable[[], Awaitable[None]],
        retry: RetryPolicy,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 1024,
        max_context: int | None = None,
        chat_template: str | None = None,
        response_template: str | Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
            raise ValueError("temperature must be >= 0, top_p in (0, 1], max_new_tokens >= 1")
        super().__init__(f"hf:{short(policy)}", seed)
        self.contaminated_by = contamination(policy)
        self._policy, self._client, self._served = policy, client, served
        self._restore, self._retry = restore, retry
        self._max_new_tokens, self._max_context = max_new_tokens, max_context
        self._chat_template, self._response_template = chat_template, response_template
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._options = {"temperature": temperature, "top_p": top_p, **_UNCHANGED}
        self._stop_ids: frozenset[int] = frozenset()
        self._loop = LoopThread()

    async def aclose(self) -> None:
        """Closes the connections."""
        await super().aclose()
        await self._loop.run(self._client.aclose())
        await asyncio.to_thread(self._loop.close)

    def _make_engine(self) -> Engine:
        from transformers import AutoConfig

        tokenizer = load_tokenizer(
            self._policy, chat_template=self._chat_template, variables=self._chat_template_kwargs
        )
        template = choose_response_template(tokenizer, self._response_template, self._chat_template_kwargs)
        config = AutoConfig.from_pretrained(self._policy, trust_remote_code=False)
        self._stop_ids = stop_ids(tokenizer, _generation_config(self._policy, config))
        chat = ChatFormat(tokenizer, template, self._chat_template_kwargs, self._stop_ids)
        return Engine(chat, max_prompt(config, self._max_context, self._max_new_tokens), self._generate)

    async def _generate(self, request: GenerationRequest) -> Completion:
        completion, _ = await self._loop.run(self._retry.run(self._ask, request))
        return completion

    async def _ask(self, request: GenerationRequest) -> Completion:
        body: dict[str, Any] = {
            "model": self._served,
            "prompt": request.prompt_ids,
            "max_tokens": self._max_new_tokens,
            "seed": request.seed,
            "stop_token_ids": sorted(self._stop_ids),
            "logprobs": 0,
            "return_token_ids": True,
            **self._options,
        }
        try:
            answer = await self._client.post("completions", body)
        except NotFoundError as error:
            await self._restore()
            # Raised as what may pass: the next attempt finds the weights.
            raise UnusableError(str(error)) from None
        return self._read(answer, list(request.prompt_ids))

    def _read(self, answer: Any, prompt_ids: list[int]) -> Completion:
        """Reads an answer.

        Raises:
            UnusableError: It is none.
            ProviderError: It is another model's, of other tokens, or without ids; no further attempt would differ.
        """
        where = self._client.url
        if not isinstance(answer, dict) or not (isinstance(answer.get("choices"), list) and answer["choices"]):
            raise UnusableError(f"{where} sent no completion")
        if answer.get("model") != self._served:
            raise ProviderError(f"{where} answered with {answer.get('model')!r} where {self._served!r} was asked for")
        choice = answer["choices"][0] if isinstance(answer["choices"][0], dict) else {}
        token_ids, seen = choice.get("token_ids"), choice.get("prompt_token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(token_ids, list) or not isinstance(logprobs, list):
            raise ProviderError(f"{where} sends no token ids or log-probabilities; vLLM does, from 0.10.2 on")
        if seen is not None and seen != prompt_ids:
            raise ProviderError(f"{where} read other tokens than it was sent")
        if len(token_ids) != len(logprobs) or not token_ids or not all(map(_is_logprob, logprobs)):
            raise UnusableError(f"{where} sent ids and log-probabilities that do not fit each other")
        return Completion(token_ids, logprobs)


class LoopThread:
    """An event loop in a thread of its own, so that connections outlive the loops of those who use them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fate-gym-served", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there, and waits for its result; it is cancelled with its caller."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Stops the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _is_logprob(value: object) -> bool:
    # Rounding may lift a certain token above 0 by a bit.
    return isinstance(value, int | float) and math.isfinite(value) and value < 1e-3


def _generation_config(policy: str, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(policy)
    except OSError:
        # A model need not have one; transformers then makes it from the model's own configuration.
        return GenerationConfig.from_model_config(config)
