"""Replies that tried to call a tool and could not be read: what the environment is given in their place."""

from __future__ import annotations

from fate_gym.chat import Message


def malformed_call(text: str, problem: str) -> Message:
    """Returns the action that stands for a call that could not be read; the environment answers and counts it.

    Args:
        text: What the model wrote.
        problem: What is wrong with it.
    """
    return {"role": "assistant", "content": text, "tool_calls": text or problem, "parse_error": problem}
