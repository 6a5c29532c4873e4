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

Result: TypeAlias = dict[str, Any]
"""The content of a study's `results/REPLICATE-ARM.json`: `scores` (test set -> `Row`) and how they came about."""

Report: TypeAlias = dict[str, Any]
"""The content of a study's `study.json`: scores, differences and costs over its replicates."""
