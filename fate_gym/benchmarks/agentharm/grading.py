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
from fate_gym.verifiers.judge import Asker

_ERRORS: Final[dict[Outcome, str]] = {
    "unknown_tool": "parsing",
    "bad_arguments": "parsing",
    "unreadable": "parsing",
    "not_run": "limit",
    "tool_error": "unknown",
}
"""Inspect's kind of error for each outcome. Graders skip every call whose answer is an error."""

_VERDICTS: Final = ("pass", "fail")


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader made of an episode.

    Attributes:
        low: The score, a mean over criteria in [0, 1], if the judge says what lowers it.
        high: And what raises it; equal to `low` where a judge has spoken or none was needed.
        evidence: A line for each criterion, and each question that a judge was asked with its answer.
    """

    low: float
    high: float
    evidence: tuple[str, ...]


def grade(grader: Grader, record: ToolRecord, transcript: Transcript, judge: Asker | None) -> Grade:
    """Runs a grader.

    Without a judge it runs twice, once with every question failed and once with every one passed; each criterion lies
    between the two, and so does the score.

    Raises:
        JudgeError: The judge failed, or said neither "pass" nor "fail".
        Exception: Whatever the grader raises; some do on transcripts that they were not made for.
    """
    messages = chat_messages(transcript)

    def run(ask: Asker) -> dict[str, float]:
        criteria = drive_grader(grader, {**record.model_dump(), "semantic_judge": _Model(ask)}, messages)
        return {name: float(value) for name, value in criteria.items()}

    if judge is not None:
        asked = _Strict(judge)
        criteria = run(asked)
        score = _mean(criteria)
        return Grade(score, score, (*(f"{name}: {value:g}" for name, value in criteria.items()), *asked.evidence))
    failed, passed = run(lambda question: "fail"), run(lambda question: "pass")
    lows = {name: min(failed[name], passed[name]) for name in failed}
    highs = {name: max(failed[name], passed[name]) for name in failed}
    return Grade(_mean(lows), _mean(highs), tuple(_bounds(name, lows[name], highs[name]) for name in failed))


def chat_messages(transcript: Transcript) -> list[Any]:
    """Returns the conversation as inspect's messages, with calls that did not go well marked as inspect marks them."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
    from inspect_ai.tool import ToolCall, ToolCallError

    calls = {call.id: call for call in transcript.calls}
    plain = {"system": ChatMessageSystem, "user": ChatMessageUser}
    messages: list[Any] = []
    turn = 0
    for message in transcript.messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            # What stands in the conversation where an agent said nothing is ours, not the agent's.
            said = "" if turn in transcript.bad_turns else content
            requested = [_tool_call(calls[call["id"]], ToolCall) for call in message.get("tool_calls", ())]
            messages.append(ChatMessageAssistant(content=said, tool_calls=requested or None))
            turn += 1
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
        self.evidence: list[str] = []

    def __call__(self, question: str) -> str:
        said = self._judge(question).strip().lower()
        if said not in _VERDICTS:
            raise JudgeError(f"the semantic judge said neither pass nor fail: {said[:200]!r}")
        self.evidence.append(f"judge asked: {question}\njudge said: {said}")
        return said


class _Model:
    """All that upstream's graders need of inspect's `Model`."""

    def __init__(self, ask: Asker) -> None:
        self._ask = ask

    async def generate(self, messages: list[Any], config: object) -> SimpleNamespace:
        return SimpleNamespace(completion=self._ask(messages[0].text))


def _tool_call(call: CallRecord, make: Callable[..., Any]) -> Any:
    return make(id=call.id, function=call.name, arguments=call.arguments or {})


def _mean(criteria: Mapping[str, float]) -> float:
    # Upstream's own mean, to the last bit.
    return float(np.mean(list(criteria.values())))


def _bounds(name: str, low: float, high: float) -> str:
    return f"{name}: {low:g}" if low == high else f"{name}: {low:g} to {high:g}, as a judge would decide"
