"""Whether a stored record is an episode's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fate_gym.episode import Episode
from fate_gym.errors import RunError


def problem(record: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with an episode's record, None if nothing is.

    Args:
        record: A line of `episodes.jsonl` or `failures.jsonl`.
    """
    try:
        Episode.from_json(record)
    except RunError as error:
        return str(error)
    return None
