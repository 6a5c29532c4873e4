"""Marks that follow a trained model: which benchmarks it has learned from against their authors' wish."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fate_gym.errors import RunError, UsageError
from fate_gym.storage import read_object

MARK: Final = "fate-gym.json"
"""Stands in the folder of every model that fate-gym trained, and says what it learned from."""


def contamination(*folders: str | Path | None) -> tuple[str, ...]:
    """Returns what the models or adapters in these folders are marked with; nothing for an id on the hub.

    Raises:
        UsageError: A mark is there, but cannot be read; an unread mark would be a mark removed.
    """
    benchmarks: set[str] = set()
    for folder in folders:
        path = Path(folder) / MARK if folder is not None else None
        if path is None or not path.is_file():
            continue
        try:
            benchmarks.update(read_object(path).texts("contaminated_by"))
        except RunError as error:
            raise UsageError(f"{path} is damaged: it should name what its model learned from ({error})") from error
    return tuple(sorted(benchmarks))
