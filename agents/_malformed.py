"""Replies that tried to call a tool and could not be read: what the environment is given in their place."""

from __future__ import annotations

import re
from typing import Final

from fate_gym.chat import Message

_CALL_MARKUP: Final = re.compile(
    # In turn: Hermes and Qwen; Mistral; Llama 3; Kimi; DeepSeek (with full-width bars); Llama and Groq; gpt-oss; LFM.
    r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_calls?_(section_)?begin\|>|<[|｜]tool▁calls?▁begin[|｜]>"
    r"|<function=\w+>|<\|channel\|>commentary to=functions\.|<\|tool_call_start\|>"
)


def malformed_call(text: str, problem: str) -> Message:
    """Returns the action that stands for a call that could not be read; the environment answers and counts it.

    Args:
        text: What the model wrote.
        problem: What is wrong with it.
    """
    return {"role": "assistant", "content": text, "tool_calls": text or problem, "parse_error": problem}


def holds_call_markup(text: str) -> bool:
    """Whether a text holds the markup with which models call tools, which a server should have parsed."""
    return _CALL_MARKUP.search(text) is not None
