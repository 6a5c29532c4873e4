"""What stands in the files that report a training, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Estimate: TypeAlias = Mapping[str, Any]
"""A metric: `value`, `low`, `high` (the 95 % interval) and `n`, the number of episodes."""

Row: TypeAlias = dict[str, Any]
"""The scores of a policy on a set of tasks: an `Estimate` for each metric; `n` and `errors`, numbers of episodes."""

RoundRecord: TypeAlias = dict[str, Any]
"""A line of `rounds.jsonl`: `round`, the counts of its stages (None where there was none), and the `dev` row."""

Summary: TypeAlias = dict[str, Any]
"""The content of `summary.json`."""

Comparison: TypeAlias = dict[str, Any]
"""The content of `comparison.json`: `arms`, by name `about`, `overrides`, and `summary` or `error`."""
