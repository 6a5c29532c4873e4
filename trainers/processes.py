"""Which process this one is: torchrun starts several, and one alone may write files."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process writes the files that all of them share."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Returns the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
