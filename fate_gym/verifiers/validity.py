"""The validity axis: the share of an agent's units of action that are right."""

from __future__ import annotations

import json

from fate_gym.rewards import AxisVerdict
from fate_gym.transcript import WRONG_CALLS, CallRecord, Transcript

RULE = "valid-share"


def verify_validity(transcript: Transcript) -> AxisVerdict:
    """Scores the share of valid units of an episode with at least one message; 0 if it was truncated.

    A unit is a call, or an assistant message that holds no call or is invalid as a whole. A call is right if it
    parses, names a known tool and passes the tool's own validation of arguments. An error of the tool's domain (no
    such mail) is the world's answer, not a mistake; only repeating the identical call that failed is one.
    """
    if transcript.truncated:
        return AxisVerdict.scored(0.0, RULE, [f"truncated: {transcript.ended}"])
    wrong = [f"message {turn}: invalid" for turn in transcript.bad_turns]
    failed_before: set[str] = set()
    for call in transcript.calls:
        if call.outcome in WRONG_CALLS:
            wrong.append(f"call {call.id} ({call.name}): {call.outcome}")
        elif call.outcome == "tool_error":
            identity = call_identity(call)
            if identity in failed_before:
                wrong.append(f"call {call.id} ({call.name}): repeats a call that failed")
            failed_before.add(identity)
    only_calls = {call.turn for call in transcript.calls} - set(transcript.bad_turns)
    units = len(transcript.calls) + len(transcript.actions) - len(only_calls)
    return AxisVerdict.scored((units - len(wrong)) / units, RULE, wrong)


def call_identity(call: CallRecord) -> str:
    """Returns what two calls share that are the same: the tool and its arguments, in whatever order."""
    return json.dumps([call.name, call.arguments], sort_keys=True)
