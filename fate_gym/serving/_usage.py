"""Token counts as servers report them, made comparable and safe to add up."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fate_gym.chat import Json

MOST_TOKENS = 10**9
"""No request takes so many; a larger count is a fault of the server's."""

_PATHS = {
    "prompt_tokens": ("prompt_tokens",),
    "completion_tokens": ("completion_tokens",),
    "cached_tokens": ("prompt_tokens_details", "cached_tokens"),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
    "total_tokens": ("total_tokens",),
}


def read_usage(usage: Json) -> dict[str, float]:
    """Returns the token counts that a server reported, by our names.

    What is missing is left out. What cannot be true (negative, not finite, beyond `MOST_TOKENS`, more cached tokens
    than there were) is NaN, which whoever adds up leaves out and counts. `completion_tokens` holds every token that is
    paid for as output: xAI counts reasoning beside it and Gemini not at all, but both within `total_tokens`.
    """
    counts: dict[str, float] = {}
    for name, path in _PATHS.items():
        value = usage
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            # Compared as it is: an integer may be too large to become a float.
            counts[name] = value if 0 <= value <= MOST_TOKENS else math.nan
    total = counts.pop("total_tokens", 0)
    if counts.get("cached_tokens", 0) > counts.get("prompt_tokens", math.inf):
        counts["cached_tokens"] = math.nan
    if {"prompt_tokens", "completion_tokens"} <= counts.keys():
        beside = total - counts["prompt_tokens"] - counts["completion_tokens"]
        if beside > 0 and counts.get("reasoning_tokens", beside) == beside:
            counts["completion_tokens"] += beside
    return counts
