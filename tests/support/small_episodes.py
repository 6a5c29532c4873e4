"""Finished episodes made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fate_gym.episode import Episode
from fate_gym.rewards import AXES, AxisVerdict, Verdict


def make_episode(key: str = "none/t#0", **fields: Any) -> Episode:
    """A benign episode without a word that went well, but for what `fields` say."""
    perfect = Verdict(**dict.fromkeys(AXES, AxisVerdict.scored(1.0, "rule/1")))
    plain: dict[str, Any] = {
        "repeat": 0, "task_id": "t", "mode": "benign", "suite": "s", "cluster": "c", "attack": None, "metadata": {},
        "seed": 0, "status": "ok", "error": None, "ended": "answer", "truncated": False, "verdict": perfect,
        "injections": {}, "injection_reached": False, "messages": [], "actions": [], "calls": (), "usage": {},
        "attempts": 1, "seconds": {"total": 0.1, "agent": 0.1},
    }  # fmt: skip
    return Episode(key, **{**plain, **fields})


def verdict_of(vector: Sequence[float], mask: Sequence[bool] = (True, True, True, True)) -> Verdict:
    """A verdict with these values, of which the mask says which count."""
    axes = zip(AXES, vector, mask, strict=True)
    return Verdict(**{name: AxisVerdict(value, active, "rule/1") for name, value, active in axes})
