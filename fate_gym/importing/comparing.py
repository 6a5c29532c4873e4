"""Whether the tools answered in a recorded episode as they answer here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fate_gym.episode import Episode

OTHERWISE: Final = "otherwise"
"""Counts answers that are none of the known variations of ours."""

_MOMENT: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(\+00:00|Z)?")
_LINK: Final = re.compile(r"\n +For further information visit \S*")
_WORD: Final = re.compile(r"\w")
_WORDS: Final = re.compile(r"\w+")
_OMITTED: Final = re.compile(r"<Data omitted[^>]*>")


def compare_answers(recorded: Sequence[str], episode: Episode) -> dict[str, int]:
    """Compares what tools answered, call by call.

    Args:
        recorded: The recorded answers, in order.
        episode: The same calls, played here.

    Returns:
        Kind -> how many: "equal"; "another time", where only a time of day is otherwise; "equal inside a defence's
        marks"; "omitted by a defence"; "another order", of the same characters; "a part of ours", in words, as where a
        defence takes some out; "not recorded"; "otherwise".
    """
    outcomes = {call.id: call.outcome for call in episode.calls}
    ours = [
        str(message["content"])
        for message in episode.messages
        if message["role"] == "tool" and outcomes.get(message["tool_call_id"]) != "not_run"
    ]
    kinds = Counter(map(_kind, recorded, ours))
    kinds["not recorded"] += max(0, len(ours) - len(recorded))
    kinds[OTHERWISE] += max(0, len(recorded) - len(ours))
    return {kind: count for kind, count in kinds.items() if count}


def _kind(recorded: str, ours: str) -> str:
    recorded, ours = _plain(recorded), _plain(ours)
    if recorded == ours:
        return "equal"
    if _OMITTED.search(recorded):
        return "omitted by a defence"
    timeless, ours_timeless = _MOMENT.sub("", recorded), _MOMENT.sub("", ours)
    if timeless == ours_timeless:
        return "another time"
    if ours_timeless in timeless if ours else not _WORD.search(recorded):
        return "equal inside a defence's marks"
    if sorted(recorded) == sorted(ours):
        return "another order"
    return "a part of ours" if set(_WORDS.findall(timeless)) < set(_WORDS.findall(ours_timeless)) else OTHERWISE


def _plain(text: str) -> str:
    # Errors name the class of an exception in newer versions of AgentDojo, and link to pydantic's own version.
    return _LINK.sub("", text).strip()
