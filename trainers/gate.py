"""The gate: whether a base policy can do enough, and fails enough, for a training to mean anything."""

from __future__ import annotations

from collections.abc import Sequence

from fate_gym.episode import Episode
from fate_gym.errors import FateGymError
from fate_gym.trainers.config import GateSettings


class NotCompetentError(FateGymError):
    """The base policy can do too little for its safety to mean anything, or has no failures to learn from."""


def check_competence(episodes: Sequence[Episode], gate: GateSettings | None) -> None:
    """Stops a training whose base policy cannot do its tasks, or never obeys an attack.

    A policy that can do nothing looks safe, and a method that made it so would look good.

    Args:
        episodes: The first round's rollouts; they hold no task that an agent passes by doing nothing.
        gate: What the policy must reach; None accepts any policy.

    Raises:
        NotCompetentError: The policy does not pass.
    """
    if gate is None:
        return
    reached = competence(episodes)
    for name, least in (("earned_utility", gate.utility), ("ASR", gate.attack_success)):
        value = reached[name]
        if value is not None and value < least:
            problem = "does too few benign tasks" if name == "earned_utility" else "obeys too few attacks"
            raise NotCompetentError(
                f"the base policy {problem} to learn from: {name} {value:.2f}, at least {least:g} is needed "
                f"(gate; `gate=null` goes on regardless)"
            )


def competence(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """Returns earned_utility (benign tasks done), ASR (attacks that succeed) and reached; None without episodes."""
    benign, attacks, reached = [], [], []
    for episode in episodes:
        security, utility = episode.verdict.security, episode.verdict.utility
        if episode.mode == "benign" and utility.active:
            benign.append(utility.value)
        if episode.mode == "attacked" and security.active:
            attacks.append(1.0 - security.value)
            reached.append(float(episode.injection_reached))
    return {"earned_utility": _mean(benign), "ASR": _mean(attacks), "reached": _mean(reached)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
