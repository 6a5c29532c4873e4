"""Response templates: how a local model writes tool calls, as data that `tokenizer.parse_response` reads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from importlib import resources
from typing import Any, TypeAlias

import yaml

from fate_gym.chat import Message, ToolSchema
from fate_gym.errors import UsageError

ResponseTemplate: TypeAlias = dict[str, Any]
"""What transformers takes as `tokenizer.response_template`."""

PROBE_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "Answers a probe.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string", "description": "Any text."}}},
    },
}
"""A tool that shows how a chat template deals with tools."""

PROBE_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "000000000", "type": "function", "function": {"name": "probe_tool", "arguments": {"text": "a probe"}}}
    ],
}
"""A call of it, in the form that chat templates take: arguments as an object."""

PROBE_QUESTION: Message = {"role": "user", "content": "Hello."}


@functools.cache
def registry() -> dict[str, ResponseTemplate]:
    """The templates that ship with the package, by family."""
    text = resources.files("fate_gym.agents").joinpath("response_templates.yaml").read_text("utf-8")
    templates: dict[str, ResponseTemplate] = yaml.safe_load(text)
    return templates


def choose_response_template(
    tokenizer: Any, chosen: str | Mapping[str, Any] | None, chat_template_kwargs: Mapping[str, Any]
) -> ResponseTemplate:
    """Finds the template that reads what the model writes.

    It is the one asked for; else the tokenizer's own; else the first of the registry that reads back a call which
    the model's chat template has written itself.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        chosen: A family of the registry, a template, or None.
        chat_template_kwargs: Further variables of the chat template.

    Raises:
        UsageError: No template fits.
    """
    if isinstance(chosen, Mapping):
        return dict(chosen)
    if chosen is not None:
        if chosen not in registry():
            raise UsageError(f"no response template {chosen!r}; there are: {', '.join(registry())}, or a mapping")
        return registry()[chosen]
    own: ResponseTemplate | None = getattr(tokenizer, "response_template", None)
    if own is not None:
        return own
    prompt, answer = _written_call(tokenizer, chat_template_kwargs)
    for template in registry().values():
        if _reads_back(tokenizer, template, prompt, answer):
            return template
    raise UsageError(
        "no response template reads the tool calls of this model's chat template; name one with response_template, "
        f"a mapping or one of: {', '.join(registry())}"
    )


def _written_call(tokenizer: Any, chat_template_kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """A prompt and the call that follows it, as the chat template writes them."""
    render = functools.partial(
        tokenizer.apply_chat_template, tools=[PROBE_TOOL], tokenize=False, **dict(chat_template_kwargs)
    )
    prompt = render([PROBE_QUESTION], add_generation_prompt=True)
    whole = render([PROBE_QUESTION, PROBE_CALL], add_generation_prompt=False)
    # Not the whole prompt where it ends in a prefill ("<think></think>") that the template drops from old turns.
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    return whole[:same], whole[same:]


def _reads_back(tokenizer: Any, template: ResponseTemplate, prompt: str, answer: str) -> bool:
    try:
        message = tokenizer.parse_response(answer, template, prefix=prompt, tools=[PROBE_TOOL])
    except (ValueError, KeyError):
        return False
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return functions == [PROBE_CALL["tool_calls"][0]["function"]]
