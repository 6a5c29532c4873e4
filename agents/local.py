"""A local model of transformers as an agent; its sampled tokens are kept, as training needs them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fate_gym.agents._batching import MicroBatcher
from fate_gym.agents._token_agent import Completion, Engine, GenerationRequest, TokenAgent
from fate_gym.agents.chat_format import ChatFormat, chat_templates, read_chat_template
from fate_gym.agents.marks import contamination
from fate_gym.agents.response_templates import (
    PROBE_QUESTION,
    PROBE_TOOL,
    choose_response_template,
)
from fate_gym.errors import UsageError
from fate_gym.share import own_share

_SPECIAL = re.compile(r"<\|\w+\|>")
"""Tokens that chat templates write, in the form that nearly all models have."""


class LocalAgent(TokenAgent):
    """A causal language model with a chat template that takes tools, from a folder or the hub.

    Weights are read from safetensors alone, and no code from a model's folder ever runs. The model loads on first
    use; `check` does it before. Episodes at the same time share forward passes (see `MicroBatcher`).

    Args:
        model: A folder, or an id on the hub.
        adapter: A PEFT adapter for it, a folder or an id.
        dtype: Type of the weights: "auto" for the stored one, or "float32", "bfloat16", "float16".
        device: "cpu", "cuda", "cuda:1", ..., or "auto" to spread it over all; None for CUDA where there is one, and
            a card of its own for each worker process.
        attention: transformers' `attn_implementation`: "sdpa", "eager", "flash_attention_2", ...
        temperature: 0 for greedy decoding. Recorded log-probabilities are those of the sampling distribution, with
            temperature and `top_p` applied; of temperature 1 under greedy decoding.
        top_p: Probability mass that is kept, in (0, 1].
        max_new_tokens: Most tokens of one reply.
        max_batch: Most prompts in one forward pass.
        max_context: Most tokens of prompt and reply together; the model's own limit if None.
        cache_gib: Most memory, in GiB, for the keys and values of what was read already: the turns of conversations
            under way, and the beginnings that episodes share. 0 keeps none.
        chat_template: How conversations are written, for a model whose own template takes no tools: a name in
            `chat_templates/`, such as "hermes", or a file in Jinja; None for the tokenizer's own.
        response_template: How the model writes tool calls: a name in `response_templates.yaml` or a mapping in
            transformers' format; None for the tokenizer's own or whatever fits the chat template.
        chat_template_kwargs: Further variables of the chat template, such as {"enable_thinking": False}. Llama 3's
            prints the current day unless it is given a "date_string".
        seed: Decides the samples, together with the episode's task and seed.

    Raises:
        ValueError: A number is out of its range.
    """

    unpriced = True

    def __init__(
        self,
        model: str,
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        attention: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 1024,
        max_batch: int = 32,
        max_context: int | None = None,
        cache_gib: float = 2.0,
        chat_template: str | None = None,
        response_template: str | Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1 or max_batch < 1 or not cache_gib >= 0:
            raise ValueError(
                "temperature and cache_gib must be >= 0, top_p in (0, 1], max_new_tokens and max_batch >= 1"
            )
        super().__init__(f"hf:{short(model)}" + (f"+{short(adapter)}" if adapter else ""), seed)
        self.contaminated_by = contamination(model, adapter)
        self.model, self.adapter = model, adapter
        self.max_new_tokens = max_new_tokens
        self._dtype, self._device, self._attention = dtype, device, attention
        self.on_gpu = None if device in (None, "auto") else device.startswith("cuda")
        self._temperature, self._top_p = temperature, top_p
        self._max_batch = max_batch
        self._max_context = max_context
        self._cache_gib = cache_gib
        self._chat_template = chat_template
        self._response_template = response_template
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._batcher: MicroBatcher[GenerationRequest, Completion] | None = None
        self._loaded: tuple[Any, Any] | None = None

    @classmethod
    def over(cls, model: Any, tokenizer: Any, *, name: str = "policy", **options: Any) -> LocalAgent:
        """Makes an agent of a model that is in memory already, as training needs it.

        Its weights are used as they are when a reply is sampled. The caller keeps the model, and sets it back to
        training, since sampling puts it in evaluation mode.

        Args:
            model: A transformers causal language model, perhaps with an adapter.
            tokenizer: Its tokenizer, with a chat template that takes tools.
            name: The agent's name will be "hf:" and this.
            **options: Options of the constructor; those about loading have no effect.
        """
        agent = cls(name, **options)
        agent._loaded = (model, tokenizer)
        return agent

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the call that made it; another process loads the model itself.

        Raises:
            TypeError: The model is only in the memory of this process.
        """
        if self._loaded is not None:
            raise TypeError(f"the model of {self.name} is only in the memory of this process")
        return super().__reduce__()

    async def aclose(self) -> None:
        """Stops generating and frees the model."""
        batcher, self._batcher = self._batcher, None
        await super().aclose()
        if batcher is not None:
            await asyncio.to_thread(batcher.close)

    def _make_engine(self) -> Engine:
        import torch

        from fate_gym.agents._generation import Generator

        model, tokenizer = self._loaded or (
            None,
            load_tokenizer(self.model, chat_template=self._chat_template, variables=self._chat_template_kwargs),
        )
        template = choose_response_template(tokenizer, self._response_template, self._chat_template_kwargs)
        if model is None:
            model = self._load_weights()
        stops = stop_ids(tokenizer, model.generation_config)
        generator = Generator(
            model.eval(),
            stop_ids=stops,
            max_new_tokens=self.max_new_tokens,
            temperature=self._temperature,
            top_p=self._top_p,
            cache_bytes=int(self._cache_gib * 2**30),
            may_learn=self._loaded is not None,
        )
        self._batcher = MicroBatcher(generator.answers, max_batch=self._max_batch, too_large=torch.OutOfMemoryError)
        chat = ChatFormat(tokenizer, template, self._chat_template_kwargs, stops)
        most = max_prompt(model.config, self._max_context, self.max_new_tokens)
        return Engine(chat, most, self._batcher.submit)

    def _load_weights(self) -> Any:
        import torch

        # Of several processes on one machine, each takes a card of its own as far as there are enough.
        card = f"cuda:{own_share().index % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        device = self._device or card
        model = load_model(self.model, dtype=self._dtype, device_map=device, attn_implementation=self._attention)
        return _load_adapter(model, self.adapter) if self.adapter else model


def load_tokenizer(
    model: str, *, chat_template: str | None = None, variables: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Loads a tokenizer with a chat template that takes tools; no code from its folder runs.

    Args:
        model: A folder, or an id on the hub.
        chat_template: As in `LocalAgent`.
        variables: Further variables of the chat template.

    Raises:
        UsageError: It has no chat template, one that takes no tools, or one whose tokens it does not know.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
        if strange := sorted(set(_SPECIAL.findall(tokenizer.chat_template)) - set(tokenizer.get_vocab())):
            raise UsageError(f"its tokenizer has no token {strange[0]}, which chat_template {chat_template} writes")
    if not tokenizer.chat_template:
        raise UsageError("it has no chat template, so it is not a chat model")
    prompt = tokenizer.apply_chat_template(
        [PROBE_QUESTION], tools=[PROBE_TOOL], tokenize=False, add_generation_prompt=True, **variables
    )
    if PROBE_TOOL["function"]["name"] not in prompt:
        raise UsageError(
            f"its chat template takes no tools; chat_template={' or '.join(chat_templates())}, or a file, writes them"
        )
    return tokenizer


def load_model(model: str, **options: Any) -> Any:
    """Loads a causal language model from safetensors; no code from its folder runs.

    Args:
        model: A folder, or an id on the hub.
        **options: Options of `from_pretrained`.

    Raises:
        UsageError: A part of the weights is missing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config

    # Once a trainer has begun under DeepSpeed, it would have all processes read the weights together, in shards.
    unset_hf_deepspeed_config()
    auto: Any = AutoModelForCausalLM  # Its types leave out `output_loading_info`.
    loaded, report = auto.from_pretrained(
        model, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    if report["missing_keys"]:
        # They would be random, and the scores with them.
        raise UsageError(f"its weights lack {len(report['missing_keys'])} tensors, {min(report['missing_keys'])} first")
    return loaded


def _load_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel
    from transformers.utils.hub import cached_file

    # peft would fall back to pickled weights.
    cached_file(adapter, "adapter_model.safetensors")
    return PeftModel.from_pretrained(model, adapter)


def stop_ids(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Returns all tokens that end a turn: the tokenizer knows one, a model's generation config often several."""
    configured = generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(stop for stop in [*several, tokenizer.eos_token_id] if stop is not None)


def max_prompt(config: Any, max_context: int | None, max_new_tokens: int) -> int | None:
    """Returns the most tokens of a prompt; None without limit.

    Args:
        config: The model's configuration.
        max_context: Most tokens of prompt and reply together; the model's own limit if None.
        max_new_tokens: Most tokens of the reply.

    Raises:
        UsageError: A reply leaves no room for a prompt.
    """
    context = max_context or getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return None
    if context <= max_new_tokens:
        raise UsageError(f"max_new_tokens={max_new_tokens} fills the context of {context} tokens")
    return int(context) - max_new_tokens


def short(model: str) -> str:
    """Returns a folder's name; an id of the hub as it is."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
