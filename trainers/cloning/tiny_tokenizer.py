"""The tiny policy's tokenizer: whole phrases are tokens, so that an episode is short.

Byte-level BPE that splits at line breaks alone: merges run over spaces and punctuation, and an IBAN or a sentence that
comes back in every episode becomes a token or two. That suits a closed world of a few dozen tasks, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from fate_gym.agents.response_templates import ResponseTemplate
from fate_gym.trainers.cloning.demonstrations import ScriptedEpisode

PAD: Final = "<|pad|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
CALL: Final = "<|call|>"
RESULT: Final = "<|result|>"
END: Final = "<|end|>"

CHAT_TEMPLATE: Final = """\
{%- for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}<|user|>{{ message.content }}
{%- elif message.role == 'tool' %}<|result|>{{ message.content }}
{%- elif message.role == 'assistant' %}<|assistant|>{{ message.content }}
{%- for call in message.tool_calls or [] %}<|call|>{{ call.function.name }}{{ call.function.arguments | tojson }}
{%- endfor %}<|end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
"""Names of the tools alone, no system prompt, and one token a message beside what it says."""

RESPONSE_TEMPLATE: Final[ResponseTemplate] = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            # The name is optional in the pattern alone: a call without one must not pass for text.
            "open_pattern": r"<\|call\|>(?P<name>[\w-]+)?",
            "close_pattern": r"(?=<\|call\|>)|<\|end\|>|\Z",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"<\|end\|>|\Z", "content": "text"},
    },
}


def train_tokenizer(runs: Iterable[ScriptedEpisode], vocab_size: int, max_token_length: int) -> Any:
    """Learns a tokenizer from what stands in runs.

    Args:
        runs: The runs.
        vocab_size: Tokens, special ones included.
        max_token_length: Characters of the longest token.

    Returns:
        A transformers tokenizer with a chat template and a response template.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        max_token_length=max_token_length,
        special_tokens=[PAD, USER, ASSISTANT, CALL, RESULT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(list(_texts(runs)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def _texts(runs: Iterable[ScriptedEpisode]) -> Iterator[str]:
    """Every stretch of text that the chat template puts between special tokens, as often as it stands there."""
    for run in runs:
        yield "".join(f"{tool['function']['name']} " for tool in run.tools)
        for message in run.messages:
            if message["role"] != "system":
                yield message["content"]
            for call in message.get("tool_calls", ()):
                yield call["function"]["name"] + call["function"]["arguments"]
