"""The methods: FATE and its baselines, each by what it changes of a FATE round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

MethodName: TypeAlias = Literal["fate", "sft", "rft", "dpo", "grpo", "gdpo", "security-only"]

StageName: TypeAlias = Literal["collect", "repair", "select", "warmup", "pfpo"]
"""The stages of a round, in their order."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train on the same tasks.

    Attributes:
        summary: One line for people.
        warm_up: Data of the warm-up: "repairs" with benign successes, "repairs alone", "successes", or "preferences"
            (a repair over its failure, by DPO). None if there is no warm-up.
        optimises: Whether policy optimisation follows.
        rule: Advantage rule of the optimisation; None for the one in the settings.
    """

    summary: str
    warm_up: Literal["repairs", "repairs alone", "successes", "preferences"] | None = None
    optimises: bool = False
    rule: str | None = None

    @property
    def repairs(self) -> bool:
        """Whether failures are repaired: only where something learns from repairs."""
        return self.warm_up not in (None, "successes")

    @property
    def elastic(self) -> StageName:
        """The stage that takes what a budget leaves to a round: the one by which the method can use more samples."""
        return "pfpo" if self.optimises else "repair" if self.repairs else "collect"

    def has_stage(self, stage: StageName) -> bool:
        """Whether a stage is a part of this method."""
        if stage in ("repair", "select"):
            return self.repairs
        return stage == "collect" or (self.warm_up is not None if stage == "warmup" else self.optimises)


METHODS: Final[Mapping[MethodName, Method]] = {
    "fate": Method("the configuration as it is", warm_up="repairs", optimises=True),
    "sft": Method("supervised, on repairs alone", warm_up="repairs alone"),
    "rft": Method("supervised, on successes alone", warm_up="successes"),
    "dpo": Method("DPO on (repair, failure)", warm_up="preferences"),
    "grpo": Method("GRPO from the base, weighted sum", optimises=True, rule="weighted-sum"),
    "gdpo": Method("GDPO from the base", optimises=True, rule="gdpo"),
    "security-only": Method("GRPO from the base, security alone", optimises=True, rule="security-only"),
}
"""Methods by name, as `method:` in a configuration has it."""
