"""The record of an episode: everything that verifiers, renderers and run folders read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from fate_gym.chat import EMPTY_ANSWER, Json, Message

Status = Literal["ok", "env_error", "provider_error", "judge_error"]
"""Whether an episode is scored ("ok"), or why it is not."""

Outcome = Literal["ok", "unknown_tool", "bad_arguments", "tool_error", "unreadable", "not_run"]
"""What happened to a call. `tool_error` is an error of the tool's domain (no such email): the call was valid."""

WRONG_CALLS: frozenset[Outcome] = frozenset({"unknown_tool", "bad_arguments", "unreadable", "not_run"})
"""Outcomes of calls that were not valid in themselves."""

MAX_SIZE: Final = 16 * 2**20
"""Bytes of the actions and messages of an episode, as JSON: more than the largest contexts of models hold. Without a
bound, a model that writes a large file once and reads it by a thousand calls fills the memory, and makes a line that no
reader of runs accepts (`fate_gym.storage.MAX_LINE`, which leaves room for what else a record holds)."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One requested call and its answer.

    Attributes:
        turn: Index of the assistant message that requested the call.
        id: The id that the request and the answer share.
        name: The name of the tool as the agent wrote it.
        arguments: The arguments as the tool received them, made JSON; as requested where the tool did not run; None
            where they could not be read.
        outcome: What happened to the call.
        content: The text of the tool message.
    """

    turn: int
    id: str
    name: str
    arguments: dict[str, Json] | None
    outcome: Outcome
    content: str

    @property
    def executed(self) -> bool:
        """Whether the tool ran."""
        return self.outcome in ("ok", "tool_error")


@dataclass(slots=True)
class Transcript:
    """The record of an episode, which grows while the episode runs.

    Attributes:
        messages: The normalised conversation.
        actions: The actions as JSON, one for each assistant message.
        calls: Every requested call, in order.
        bad_turns: Indices of assistant messages that were invalid as a whole: empty, or not readable in part.
        final_text: Visible text of the last assistant message.
        injection_reached: Whether a tool message has contained an injected text.
        ended: Why the episode is over ("answer", "max_turns", ...), None while it runs.
        truncated: Whether it was cut off.
        size: Bytes of the actions and messages as JSON, without those that opened the conversation.
        full: Whether an answer had to be cut, so that there is no room for another.
    """

    messages: list[Message]
    actions: list[Json] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    bad_turns: list[int] = field(default_factory=list)
    final_text: str = ""
    injection_reached: bool = False
    ended: str | None = None
    truncated: bool = False
    size: int = 0
    full: bool = False

    def holds(self, size: int) -> bool:
        """Whether there is room for so many bytes more."""
        return self.size + size <= MAX_SIZE

    def add_turn(self, action: Json, message: Message, size: int) -> None:
        """Adds an assistant message.

        Args:
            action: The action as it came.
            message: The message as it stands in the conversation.
            size: The `turn_size` of both.
        """
        self.actions.append(action)
        self.messages.append(message)
        self.size += size

    def add(self, message: Message) -> None:
        """Adds a message to the conversation."""
        self.messages.append(message)
        self.size += _size(message)

    def cut(self, content: str) -> str:
        """Returns the text of a tool message, cut to what there is room for."""
        room = max(0, MAX_SIZE - self.size)
        # A character takes at most 12 bytes, as a pair of surrogates; most texts need not be measured.
        if len(content) * 12 <= room or _size(content) <= room:
            return content
        self.full = True
        return f"{content[: room // 12]}... ({len(content)} characters, cut here: the record of the episode is full)"

    @property
    def said(self) -> list[str]:
        """What the agent wrote, message by message; "" where it wrote nothing and `EMPTY_ANSWER` stands instead."""
        contents = [str(message["content"]) for message in self.messages if message["role"] == "assistant"]
        for turn in self.bad_turns:
            if contents[turn] == EMPTY_ANSWER:
                contents[turn] = ""
        return contents

    def to_json(self) -> dict[str, Json]:
        """As it stands in a snapshot."""
        return {**dataclasses.asdict(self), "calls": [dataclasses.astuple(call) for call in self.calls]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Transcript:
        """Reads what `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError: It is something else.
        """
        transcript = cls(**{**data, "calls": [CallRecord(*call) for call in data["calls"]]})
        lists = (transcript.messages, transcript.actions, transcript.bad_turns)
        if not all(isinstance(part, list) for part in lists):
            raise TypeError("messages, actions and bad_turns must be lists")
        for message in transcript.messages:
            _check_message(message)
        for call in transcript.calls:
            texts = (call.id, call.name, call.outcome, call.content)
            if not (isinstance(call.turn, int) and all(isinstance(text, str) for text in texts)):
                raise ValueError("a call is not as recorded")
            if call.outcome not in get_args(Outcome) or not isinstance(call.arguments, dict | None):
                raise ValueError("a call is not as recorded")
        turns = sum(message["role"] == "assistant" for message in transcript.messages)
        if len(transcript.actions) != turns or not all(turn in range(turns) for turn in transcript.bad_turns):
            raise ValueError("the assistant's turns are not as recorded")
        if not isinstance(transcript.size, int) or not isinstance(transcript.final_text, str):
            raise TypeError("size must be an integer, final_text a string")
        if transcript.ended is not None:
            raise ValueError("the episode is not one that runs")
        return transcript


def turn_size(action: Json, message: Message) -> int:
    """Returns the bytes of an assistant message in both of its forms."""
    return _size([action, message]) - len("[, ]")


def _size(value: Json) -> int:
    return len(json.dumps(value))


def _check_message(message: Message) -> None:
    match message:
        case {"role": "tool", "content": str(), "tool_call_id": str()}:
            return
        case {"role": "system" | "user" | "assistant", "content": str(), **rest}:
            for call in rest.get("tool_calls", ()):
                match call:
                    case {"id": str(), "function": {"name": str(), "arguments": str()}}:
                        continue
                raise ValueError("a tool call is not as in the conversation")
            return
    raise ValueError("a message is not as in the conversation")
