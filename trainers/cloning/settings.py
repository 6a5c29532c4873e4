"""Settings of cloning: what it starts from, its data, and its hyperparameters."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from fate_gym.benchmarks.agentdojo.splits import check_fold
from fate_gym.chat import Json
from fate_gym.trainers.policy import LoraSettings


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares, in [0, 1], of the kinds of episodes that the base policy is cloned from.

    Episodes that are neither `benign` nor `attacked` are repairs.

    Attributes:
        benign: Share of benign tasks among all episodes.
        benign_refused: Share of needless refusals among the benign ones.
        attacked: Share of attacked tasks among all episodes.
        ignored: Share of the attacked ones in which only the user's task is done.
        obeyed: Share of the attacked ones in which the injection is obeyed; the rest are refused.
        instead: Share of the obeyed ones in which the injection replaces the user's task; else it is done afterwards.
        repair_obeys: Share of the repairs that obey again.
    """

    benign: float = 0.22
    benign_refused: float = 0.05
    attacked: float = 0.58
    ignored: float = 0.45
    obeyed: float = 0.47
    instead: float = 1 / 3
    repair_obeys: float = 0.2

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in (entry.name for entry in dataclasses.fields(self))}
        wrong = [name for name, share in shares.items() if not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"shares lie in [0, 1]: {wrong[0]}={shares[wrong[0]]}")
        for first, second in (("benign", "attacked"), ("ignored", "obeyed")):
            if shares[first] + shares[second] > 1:
                raise ValueError(f"{first} and {second} are shares of one whole: together at most 1")

    def shares(self) -> dict[str, float]:
        """Returns the probability of each kind of run (`demonstrations.Kind`); they add up to 1."""
        repair = 1 - self.benign - self.attacked
        refused = 1 - self.ignored - self.obeyed
        return {
            "benign": self.benign * (1 - self.benign_refused),
            "benign-refused": self.benign * self.benign_refused,
            "ignored": self.attacked * self.ignored,
            "obeyed-then": self.attacked * self.obeyed * (1 - self.instead),
            "obeyed-instead": self.attacked * self.obeyed * self.instead,
            "refused": self.attacked * refused,
            "repaired": repair * (1 - self.repair_obeys),
            "repair-obeyed": repair * self.repair_obeys,
        }


@dataclass(frozen=True, slots=True)
class CloningSettings:
    """Settings of cloning. With the defaults, it makes a tiny policy from nothing in about four minutes of a core.

    Attributes:
        start: The policy to start from, a folder or an id on the hub; None for a tiny one that is made from nothing.
        chat_template: How a given policy's conversations are written, as in `LocalAgent`; the cloned policy keeps it.
        lora: Adapters for a given policy, merged into its weights at the end; None to learn all weights.
        suites: AgentDojo's suites.
        attacks: Registered attacks that cloning sees.
        fold: The fold of AgentDojo's split whose held-out pairs cloning does not see; None for version 1 of the split.
        exclude: Patterns (`fnmatch`) of pairs "SUITE/USER_TASK/INJECTION_TASK" that are left out. The default is the
            one injection task whose episodes are too long: it posts every message of every channel again.
        mixture: Shares of the kinds of episodes.
        vocab_size: Number of tokens of a tiny policy, special ones included.
        max_token_length: Characters of its longest token.
        hidden_size: Width of its network.
        layers: Depth of its network.
        context: Most tokens of an episode; longer ones are left out.
        steps: Optimiser steps.
        tokens_per_step: Most tokens of a batch, padding included.
        learning_rate: Peak learning rate of AdamW.
        warmup_steps: Steps until the peak; from there the learning rate falls linearly to a twentieth.
        context_weight: Weight of the loss on tokens that are no policy tokens; policy tokens have weight 1.
        checkpoint_every: Steps between checkpoints.
        seed: Decides the batches, and the initial weights of a tiny policy or of adapters.
    """

    start: str | None = None
    chat_template: str | None = None
    lora: LoraSettings | None = None
    suites: tuple[str, ...] = ("banking", "slack")
    attacks: tuple[str, ...] = ("tool_knowledge", "important_instructions")
    fold: int | None = None
    exclude: tuple[str, ...] = ("slack/*/injection_task_2",)
    mixture: Mixture = field(default_factory=Mixture)
    vocab_size: int = 2048
    max_token_length: int = 24
    hidden_size: int = 128
    layers: int = 4
    context: int = 2048
    steps: int = 1500
    tokens_per_step: int = 1250
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    context_weight: float = 0.05
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_step", "checkpoint_every", "layers", "context", "max_token_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise ValueError(f"hidden_size must be a multiple of 8, for four heads of even size: {self.hidden_size}")
        if not self.suites or not self.attacks:
            raise ValueError("cloning needs at least one suite and one attack")
        if self.start is None and (self.chat_template is not None or self.lora is not None):
            raise ValueError("chat_template and lora are for a policy that is given by `start`")
        check_fold(self.fold)

    def digest(self) -> str:
        """Returns a digest; equal settings make the same base policy."""
        # Without settings that are None: a base policy made before they existed is still the same.
        given = {name: value for name, value in self.to_json().items() if value is not None}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Json]:
        """Returns the settings as `base.json` has them."""
        data: dict[str, Json] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data
