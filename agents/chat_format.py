"""How a local model's conversations are written as tokens, and its replies read."""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fate_gym.agents._malformed import malformed_call
from fate_gym.agents.response_templates import PROBE_CALL, PROBE_QUESTION, PROBE_TOOL, ResponseTemplate
from fate_gym.chat import Message, ToolSchema
from fate_gym.errors import UsageError, unknown

_log = logging.getLogger(__name__)
_JINJA = ".jinja"

_REMEMBERED = 512
"""Stretches of conversations whose text and tokens are remembered."""

_MARKER = "fategymmarker"
"""Stands for what the model said where only what the chat template adds after it matters."""


class ChatFormat:
    """How a model's conversations are written as tokens, and its replies read. Used from several threads.

    Args:
        tokenizer: A transformers tokenizer.
        template: Reads replies.
        kwargs: Further variables of the chat template.
        stop_ids: Tokens that end a turn.
    """

    def __init__(
        self, tokenizer: Any, template: ResponseTemplate, kwargs: Mapping[str, Any], stop_ids: frozenset[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.stop_ids = stop_ids
        self._kwargs = dict(kwargs)
        self._stop_texts = tokenizer.convert_ids_to_tokens(sorted(stop_ids))
        self._lock = threading.Lock()  # Fast tokenizers are not made for threads.
        # Episodes of a task are written alike, turn by turn, and a template takes several times as long as a look-up.
        self._rendered = functools.lru_cache(_REMEMBERED)(self._render_json)
        self._encode = functools.lru_cache(_REMEMBERED)(self._encode_text)
        self._appends = {role: self._keeps_the_past(role) for role in ("tool", "user")}
        if not all(self._appends.values()):
            after = " or ".join(role for role, keeps in self._appends.items() if not keeps)
            _log.warning(
                "The chat template rewrites earlier turns once a %s message follows: prompts are then written anew, "
                "and do not begin with the ids that were sampled before.",
                after,
            )

    def prompt(self, messages: list[Message], tools: list[ToolSchema] | None) -> tuple[int, ...]:
        """Writes a whole conversation up to where the model goes on, (p,)."""
        with self._lock:
            return self._encode(self._render(as_templates_take(messages), tools))

    def continuation(
        self, messages: list[Message], sampled: int, tools: list[ToolSchema] | None, *, ended: bool
    ) -> tuple[int, ...] | None:
        """Writes what comes between a sampled turn and the next, (s,).

        Args:
            messages: The conversation.
            sampled: The index of the sampled turn in it.
            tools: The tools.
            ended: Whether the sampled ids end in a stop token, which is then not repeated.

        Returns:
            The ids, or None where the conversation must be written anew.
        """
        written = as_templates_take(messages[sampled:])
        since = written[1:]
        if not since or not self._appends.get(since[0]["role"]) or any(m["role"] == "assistant" for m in since):
            return None
        with self._lock:
            text = self._render([PROBE_QUESTION, _marked(written[0]), *since], tools)
            # All up to the marker stands for what is there already, as ids; the turn's end comes first after it.
            after = text.partition(_MARKER)[2]
            ends = [after.index(stop) for stop in self._stop_texts if stop in after]
            if not ends:
                return None
            ids = self._encode(after[min(ends) :])
        return ids[1:] if ended else ids

    def turn(self, message: Message, tools: list[ToolSchema] | None) -> tuple[int, ...] | None:
        """Writes an assistant message as the model samples it, the token that ends its turn included, (s,).

        Returns:
            The ids, or None where the chat template does not write it after what it asks the model to go on from.
        """
        opening = [PROBE_QUESTION]
        with self._lock:
            before = self._render(opening, tools)
            whole = self._render([*opening, *as_templates_take([message])], tools)
            text = whole.removeprefix(before)
            ends = [text.index(stop) + len(stop) for stop in self._stop_texts if stop in text]
            return self._encode(text[: min(ends)]) if whole.startswith(before) and ends else None

    def read(self, prompt_ids: Sequence[int], token_ids: Sequence[int], tools: list[ToolSchema] | None) -> Message:
        """Reads a reply as an assistant message.

        A call that cannot be read, or that was cut off, gives a message which counts as malformed: its `tool_calls` is
        the raw text, and `parse_error` says what is wrong. It never passes for an answer in text.
        """
        with self._lock:
            text: str = self.tokenizer.decode(token_ids)
            try:
                message: Message = self.tokenizer.parse_response(
                    list(token_ids), self.template, prefix=list(prompt_ids), tools=tools
                )
            except Exception as error:
                # Not ValueError alone: deep nesting, say, ends in RecursionError. What the model wrote is to blame.
                return malformed_call(text, one_line(error))
        if message.get("tool_calls") and token_ids[-1] not in self.stop_ids:
            return malformed_call(text, "the reply was cut off at the token limit, in or after a tool call")
        return message

    def _keeps_the_past(self, role: str) -> bool:
        """Whether a conversation in which a message of the role came last begins as it did before."""
        answer = PROBE_CALL if role == "tool" else {"role": "assistant", "content": "Hi."}
        reply = {"role": role, "content": "It answers.", "tool_call_id": PROBE_CALL["tool_calls"][0]["id"]}
        before = self._render([PROBE_QUESTION], [PROBE_TOOL])
        try:
            return self._render([PROBE_QUESTION, answer, reply], [PROBE_TOOL]).startswith(before)
        except Exception:
            return False  # Templates raise their own errors for what they do not take.

    def _render(self, messages: list[Message], tools: list[ToolSchema] | None) -> str:
        return self._rendered(json.dumps([messages, tools]))

    def _render_json(self, conversation: str) -> str:
        messages, tools = json.loads(conversation)
        text: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False, **self._kwargs
        )
        return text

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def chat_templates() -> tuple[str, ...]:
    """Returns the names of the chat templates that ship with the package."""
    return tuple(sorted(entry.name.removesuffix(_JINJA) for entry in _shipped().iterdir()))


def read_chat_template(name: str) -> str:
    """Reads a chat template: one that ships with the package, by its name, or a file in Jinja.

    Raises:
        UsageError: There is neither.
    """
    if name in chat_templates():
        return (_shipped() / f"{name}{_JINJA}").read_text("utf-8")
    try:
        return Path(name).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{unknown('chat template', name, chat_templates())}, or a file: {one_line(error)}") from error


def _shipped() -> Traversable:
    return resources.files("fate_gym.agents") / "chat_templates"


def as_templates_take(messages: Iterable[Message]) -> list[Message]:
    """The conversation as chat templates take it: arguments as objects, and ids that Mistral's do not refuse."""
    ids: dict[str, str] = {}
    taken = []
    for message in messages:
        message = dict(message)
        if "tool_calls" in message:
            message["tool_calls"] = [
                {
                    "id": ids.setdefault(call["id"], f"{len(ids):09d}"),
                    "type": "function",
                    "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])},
                }
                for call in message["tool_calls"]
            ]
        if "tool_call_id" in message:
            message["tool_call_id"] = ids.setdefault(message["tool_call_id"], f"{len(ids):09d}")
        taken.append(message)
    return taken


def _marked(turn: Message) -> Message:
    """An assistant message of the same kind, with the marker where it ends. One call only: Llama's takes no more."""
    if not turn.get("tool_calls"):
        return {"role": "assistant", "content": _MARKER}
    call = turn["tool_calls"][0]
    function = {"name": call["function"]["name"], "arguments": {"text": _MARKER}}
    return {"role": "assistant", "content": "", "tool_calls": [{**call, "function": function}]}


def one_line(error: Exception) -> str:
    """Returns the first line of an error, cut to a length that a terminal shows."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
