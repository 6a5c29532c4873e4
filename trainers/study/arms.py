"""The arms of a study: FATE, the baselines and FATE's ablations, each a few settings that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fate_gym.trainers.methods import METHODS


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        about: One line for people.
        overrides: Strings "KEY=VALUE", as `read_config` takes them.
    """

    about: str
    overrides: tuple[str, ...] = ()


_FATE_CHANGED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "fate-safe-tchebycheff": ("PFPO by the safe-first value", ("pfpo.rule=safe-tchebycheff",)),
    "fate-safe-ranks": ("PFPO by safe-first ranks", ("pfpo.rule=safe-ranks",)),
    "fate-weighted-sum": ("FATE with GRPO's advantages", ("pfpo.rule=weighted-sum",)),
    "fate-gdpo": ("FATE with GDPO's advantages", ("pfpo.rule=gdpo",)),
    "fate-security-only": ("FATE with advantages of security", ("pfpo.rule=security-only",)),
    "fate-successes": ("all successes learned beside the repairs", ("examples.successes=true",)),
    "no-warmup": ("policy optimisation alone, safe-first value", ("warmup=null",)),
    "no-warmup-safe-ranks": ("policy optimisation alone, safe-first ranks", ("warmup=null", "pfpo.rule=safe-ranks")),
    "task-prompt-repair": ("repairs sampled after the task prompt", ("repair.prompt=task_prompt",)),
    "no-task-prompt-copy": ("repairs learned after p_f alone", ("examples.task_prompt=0",)),
    "no-anchor": ("no benign successes in the warm-up", ("examples.anchor=0",)),
    "no-over-refusal": ("over-refusal not looked at", ("select.over_refusal=false",)),
    "no-rescoring": ("repairs taken unverified", ("select.rescore=false",)),
    "random-selection": ("repairs at random", ("select.rule=random",)),
    "weighted-selection": ("repairs by weighted sum", ("select.rule=weighted-sum",)),
}
"""FATE with one thing changed, by name: one line for people, and the overrides."""

ARMS: Final[Mapping[str, Arm]] = {
    **{name: Arm(method.summary, (f"method={name}",)) for name, method in METHODS.items()},
    **{name: Arm(about, ("method=fate", *overrides)) for name, (about, overrides) in _FATE_CHANGED.items()},
}
"""Everything that a study can compare, by name: the methods, FATE with each advantage rule, and ablations."""

BASELINES: Final = tuple(METHODS)
"""What a study compares unless it says otherwise: the methods."""

BASE: Final = "base"
"""Name of the policy before training among the results of a study."""
