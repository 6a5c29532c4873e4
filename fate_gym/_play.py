"""An episode under way: its world, what is recorded of it, and how an action changes both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from fate_gym._plain import replace_surrogates, to_json
from fate_gym.actions import TOO_LONG, RequestedCall, Turn, read_action
from fate_gym.benchmark import World
from fate_gym.chat import Json
from fate_gym.delivery import delivered
from fate_gym.rewards import Verdict
from fate_gym.task import Task
from fate_gym.transcript import WRONG_CALLS, CallRecord, Outcome, Status, Transcript, turn_size
from fate_gym.verifiers.validity import call_identity

_NOT_SCORED = Verdict.unscored("not over")
_PROBLEM_LENGTH = 300


@dataclass(slots=True)
class Play:
    """An episode under way, or just over.

    Attributes:
        task: Its task, without the ground truth.
        seed: What its world was opened with.
        world: The benchmark's world.
        transcript: What is recorded.
        rounds: Tool rounds so far.
        verdict: How it was scored; unscored before the end.
        status: Whose fault it is if it could not be scored.
        problem: Why the last action was invalid, None if it was not.
        failure: What a benchmark or a judge raised so that it is unscored.
    """

    task: Task
    seed: int
    world: World
    transcript: Transcript
    rounds: int = 0
    verdict: Verdict = _NOT_SCORED
    status: Status = "ok"
    problem: str | None = None
    failure: BaseException | None = None
    _failed: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._failed = {call_identity(call) for call in self.transcript.calls if call.outcome == "tool_error"}

    def take(self, action: Any, *, verbatim: bool) -> Turn:
        """Reads an action and records it.

        Args:
            action: The action, whatever it holds.
            verbatim: Whether its text counts as it is written, with thoughts and calls written as text.
        """
        transcript = self.transcript
        index = len(transcript.actions)
        turn = read_action(action, index, {call.id for call in transcript.calls}, verbatim=verbatim)
        size = turn_size(turn.raw, turn.message)
        if not transcript.holds(size):
            turn = read_action(TOO_LONG, index)
            size = turn_size(turn.raw, turn.message)
        transcript.add_turn(turn.raw, turn.message, size)
        transcript.final_text = turn.text
        self.problem = turn.problem
        if turn.problem is not None:
            transcript.bad_turns.append(index)
        return turn

    def run(self, call: RequestedCall) -> None:
        """Runs one call and answers it.

        Raises:
            Exception: What the world raised.
        """
        if call.problem is not None or call.arguments is None:
            self._answer(call, "unreadable", call.problem or "", call.arguments)
            return
        outcome = self.world.call(call.name, call.arguments)
        self._answer(call, outcome.kind, outcome.text, outcome.arguments)
        if not self.transcript.injection_reached:
            self.transcript.injection_reached = any(delivered(text, outcome.text) for text in self.world.payloads)

    def decline(self, turn: Turn, reason: str, start: int = 0) -> None:
        """Answers calls of a turn, from the given one on, without running them."""
        for call in turn.calls[start:]:
            self._answer(call, "not_run", reason, call.arguments)

    def _answer(self, call: RequestedCall, outcome: Outcome, content: str, arguments: dict[str, Json] | None) -> None:
        transcript = self.transcript
        content = transcript.cut(replace_surrogates(content))
        # A tool may have been given more than JSON can hold: AgentDojo reads lists of anything out of strings.
        recorded = None if arguments is None else cast(dict[str, Json], to_json(arguments))
        turn = len(transcript.actions) - 1
        transcript.calls.append(CallRecord(turn, call.id, call.name, recorded, outcome, content))
        transcript.add({"role": "tool", "tool_call_id": call.id, "content": content})
        repeats = outcome == "tool_error" and self._repeats(transcript.calls[-1])
        if self.problem is None and (outcome in WRONG_CALLS or repeats):
            repeated = "it repeats a call that failed: " if repeats else ""
            self.problem = f"call {call.id} ({call.name}): {repeated}{content[:_PROBLEM_LENGTH]}"

    def _repeats(self, failed: CallRecord) -> bool:
        """Notes a call that failed in the tool's domain; returns whether the same one has done so before."""
        identity = call_identity(failed)
        before = identity in self._failed
        self._failed.add(identity)
        return before
