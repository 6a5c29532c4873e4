"""What an episode leaves behind: everything that verifiers, renderers and run folders read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fate_gym.chat import Json, Message

Status = Literal["ok", "env_error", "provider_error", "judge_error"]
"""Whether an episode is scored ("ok"), or why it is not."""

Outcome = Literal["ok", "unknown_tool", "bad_arguments", "tool_error", "unreadable", "not_run"]
"""What became of a call. `tool_error` is an error of the tool's domain (no such mail): the call itself was right."""

WRONG_CALLS: frozenset[Outcome] = frozenset({"unknown_tool", "bad_arguments", "unreadable", "not_run"})
"""Outcomes of calls that were not right in themselves."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One requested call and its answer.

    Attributes:
        turn: Index of the assistant message that asked for it.
        id: The id that request and answer share.
        name: The tool's name as given.
        arguments: As the tool got them; as requested where it did not run; None where they could not be read.
        outcome: What became of it.
        content: The tool message's text.
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
    """An episode so far.

    Attributes:
        messages: The normalised conversation.
        actions: The raw actions, made JSON-able, one for each assistant message.
        calls: Every requested call, in order.
        bad_turns: Indices of assistant messages that held nothing to act on.
        final_text: Visible text of the last assistant message.
        injection_reached: Whether an injected text has stood in a tool message.
        ended: Why the episode is over ("answer", "max_turns", ...), None while it runs.
        truncated: Whether it was cut off.
    """

    messages: list[Message]
    actions: list[Json] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    bad_turns: list[int] = field(default_factory=list)
    final_text: str = ""
    injection_reached: bool = False
    ended: str | None = None
    truncated: bool = False
