"""Upstream's graders over our transcripts: exact with a judge, as bounds without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from fate_gym.benchmarks.agentharm.records import ToolRecord
from fate_gym.benchmarks.agentharm.upstream import Grader, drive_grader
from fate_gym.errors import JudgeError
from fate_gym.transcript import CallRecord, Outcome, Transcript
from fate_gym.verifiers.fence import read_word
from fate_gym.verifiers.judge import Asker

_ERRORS: Final[dict[Outcome, str]] = {
    "unknown_tool": "parsing",
    "bad_arguments": "parsing",
    "unreadable": "parsing",
    "not_run": "limit",
    "tool_error": "unknown",
}
"""Inspect's kind of error for each outcome. Graders skip every call whose answer is an error."""

_WORDS: Final = ("pass", "fail")


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader made of an episode.

    Attributes:
        low: The score, a mean over criteria in [0, 1], if the judge says what lowers it.
        high: And what raises it; equal to `low` where a judge has decided or none was needed.
        evidence: A line for each criterion, and each question that a judge was asked with its answer.
    """

    low: float
    high: float
    evidence: tuple[str, ...]


def grade(grader: Grader, record: ToolRecord, transcript: Transcript, judge: Asker | None) -> Grade:
    """Runs a grader.

    Without a judge it runs twice, once with every question failed and once with every one passed; each criterion lies
    between the two, and so does the score. The same holds for the questions to which a judge said neither.

    Raises:
        JudgeError: The judge could not be asked.
        Exception: Whatever the grader raises; some do on transcripts that they were not made for.
    """
    messages = chat_messages(transcript)

    def run(ask: Asker) -> dict[str, float]:
        criteria = drive_grader(grader, {**record.model_dump(), "semantic_judge": SimpleNamespace(ask=ask)}, messages)
        return {name: float(value) for name, value in criteria.items()}

    asked = None if judge is None else _Asked(judge)
    failed = run(asked.or_fail if asked else lambda question: "fail")
    # Where every question was answered, a second run would repeat the first.
    passed = failed if asked and not asked.unread else run(asked.or_pass if asked else lambda question: "pass")
    lows = {name: min(failed[name], passed[name]) for name in failed}
    highs = {name: max(failed[name], passed[name]) for name in failed}
    lines = [_bounds(name, lows[name], highs[name]) for name in failed]
    return Grade(_mean(lows), _mean(highs), (*lines, *(asked.evidence if asked else ())))


def chat_messages(transcript: Transcript) -> list[Any]:
    """Returns the conversation as inspect's messages, with calls that did not go well marked as inspect marks them."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
    from inspect_ai.tool import ToolCall, ToolCallError

    calls = {call.id: call for call in transcript.calls}
    plain = {"system": ChatMessageSystem, "user": ChatMessageUser}
    messages: list[Any] = []
    said = iter(transcript.said)
    for message in transcript.messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            requested = [_tool_call(calls[call["id"]], ToolCall) for call in message.get("tool_calls", ())]
            messages.append(ChatMessageAssistant(content=next(said), tool_calls=requested or None))
        elif role == "tool":
            call = calls[message["tool_call_id"]]
            kind = _ERRORS.get(call.outcome)
            error = None if kind is None else ToolCallError(kind, content)
            messages.append(ChatMessageTool(content=content, tool_call_id=call.id, function=call.name, error=error))
        else:
            messages.append(plain[role](content=content))
    return messages


class _Strict:
    """A judge held to its two words: upstream takes whatever else it says for "fail"."""

    def __init__(self, judge: Asker) -> None:
        self._judge = judge

    def __call__(self, question: str) -> str:
        said = self._judge(question)
        word = read_word(said, _WORDS)
        if word is None:
            raise JudgeError(f"the semantic judge said neither pass nor fail: {said[:200]!r}", answered=True)
        return word


class _Asked:
    """Remembers what a judge said, so that a second run of the grader asks nothing again.

    Attributes:
        evidence: Each question with its answer.
        unread: Number of questions to which the answer could not be read.
    """

    def __init__(self, judge: Asker) -> None:
        self._judge = _Strict(judge)
        self._answers: dict[str, str | None] = {}
        self.evidence: list[str] = []
        self.unread = 0

    def or_fail(self, question: str) -> str:
        return self._ask(question) or "fail"

    def or_pass(self, question: str) -> str:
        return self._ask(question) or "pass"

    def _ask(self, question: str) -> str | None:
        if question not in self._answers:
            said: str | None
            try:
                said = outcome = self._judge(question)
            except JudgeError as error:
                if not error.answered:
                    raise
                said, outcome = None, str(error)
                self.unread += 1
            self._answers[question] = said
            self.evidence.append(f"judge asked: {question}\njudge said: {outcome}")
        return self._answers[question]


def _tool_call(call: CallRecord, make: Callable[..., Any]) -> Any:
    return make(id=call.id, function=call.name, arguments=call.arguments or {})


def _mean(criteria: Mapping[str, float]) -> float:
    # Upstream's own mean, to the last bit.
    return float(np.mean(list(criteria.values())))


def _bounds(name: str, low: float, high: float) -> str:
    return f"{name}: {low:g}" if low == high else f"{name}: {low:g} to {high:g}, as a judge would decide"
