"""Tiny but real models in a folder: a Qwen 3 of two layers, a byte-level tokenizer, a chat template with tools.

`make_tiny_model` has random weights; `make_scripted_model` says what it is told: each token decides the next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # Read on import: no test may reach for the hub.

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"]
SPECIAL += ["[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
MARKUP = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
STOP = "<|im_end|>"

QWEN_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}Call one as <tool_call>{"name": <name>, "arguments": <object>}</tool_call><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|im_start|>assistant
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if not (loop.first and not message.content) %}{{ '\\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen 2.5's format in short."""

QWEN_XML_TEMPLATE = """\
<|im_start|>system
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}<|im_end|>
{% for message in messages %}
{%- if message.role == 'assistant' %}<|im_start|>assistant
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{%- for key, value in call.function.arguments.items() %}
<parameter={{ key }}>
{{ value }}
</parameter>
{%- endfor %}
</function>
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen 3 Coder's format in short."""

LLAMA3_TEMPLATE = """\
{%- macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set function = message.tool_calls[0].function %}
{{- head('assistant') }}{"name": "{{ function.name }}", "parameters": {{ function.arguments | tojson }}}<|eot_id|>
{%- else %}
{{- head('ipython' if message.role == 'tool' else message.role) }}
{%- if loop.first %}{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% endif %}
{{- message.content }}<|eot_id|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""
"""Llama 3.1's format in short; it refuses parallel calls, as the real one does."""

_MISTRAL_TEMPLATE = """\
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}<s>
{%- for message in messages %}
{%- if message.role == 'tool' or message.tool_calls %}
{%- for id in ([message.tool_call_id] if message.role == 'tool' else message.tool_calls | map(attribute='id')) %}
{%- if id | length != 9 %}{{ raise_exception('ids are nine letters or digits') }}{% endif %}
{%- endfor %}{% endif %}
{%- if message.role == 'user' %}
{%- if tools and message == asked[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif -%}
[INST] {{ message.content }}[/INST]
{%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]
{%- elif message.tool_calls %}CALLS</s>
{%- elif message.role == 'assistant' %} {{ message.content }}</s>
{%- endif %}
{%- endfor %}"""

MISTRAL_V3_TEMPLATE = _MISTRAL_TEMPLATE.replace(
    "CALLS",
    """[TOOL_CALLS] [{% for call in message.tool_calls %}{{ ', ' if not loop.first }}\
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}\
{% endfor %}]""",
)
MISTRAL_V11_TEMPLATE = _MISTRAL_TEMPLATE.replace(
    "CALLS",
    """{% for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}\
[ARGS]{{ call.function.arguments | tojson }}{% endfor %}""",
)
"""Mistral's formats in short: tools stand before the last user message, and call ids have nine characters."""


def make_tokenizer(
    corpus: Sequence[str] = (), *, extra: Sequence[str] = (), chat_template: str | None = QWEN_TEMPLATE
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: merges learnt from the corpus, and `extra` texts that are one token each."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens([*MARKUP, *extra])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=STOP, pad_token=SPECIAL[0])
    tokenizer.chat_template = chat_template
    return tokenizer


def make_tiny_model(
    folder: Path,
    corpus: Sequence[str] = (),
    *,
    chat_template: str | None = QWEN_TEMPLATE,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Saves a model of random weights, large enough ones that its next-token distributions are far from flat."""
    tokenizer = make_tokenizer(corpus, chat_template=chat_template)
    model = _qwen3(tokenizer, seed=seed, initializer_range=0.3, **config)
    return _save(folder, model, tokenizer)


def make_scripted_model(folder: Path, script: Mapping[str, Sequence[str]], corpus: Sequence[str] = ()) -> Path:
    """Saves a model that follows each text of the script, one token each, by one of its successors, equally likely.

    Attention and MLP add nothing, so the last token alone decides: its embedding is what its successors' rows of the
    output matrix look for.
    """
    texts = [*script, *(text for successors in script.values() for text in successors)]
    tokenizer = make_tokenizer(corpus, extra=[text for text in dict.fromkeys(texts) if text not in SPECIAL])
    model = _qwen3(tokenizer, seed=0)
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in texts}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = model.model.embed_tokens.weight.normal_(std=1.0)
        model.lm_head.weight.zero_()
        for text, successors in script.items():
            for successor in successors:
                model.lm_head.weight[ids[successor]] += embeddings[ids[text]]
    return _save(folder, model, tokenizer)


def _qwen3(tokenizer: PreTrainedTokenizerFast, *, seed: int, **config: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": False,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **config,
            }
        )
    )


def _save(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
