"""Stage 1, failure collection: the policy acts on the training tasks, and failures are separated from successes."""

from __future__ import annotations

from collections.abc import Sequence

from fate_gym.chat import Json
from fate_gym.episode import Episode
from fate_gym.trainers.episodes import episode_record, mask, read_episode, vector
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages._rollouts import roll_out, tokens_in


def collect(policy: str, this_round: Round) -> tuple[list[Episode], list[Episode]]:
    """Rolls out the policy once on every training episode.

    In the stage's file each record is an `Episode` with `failed` beside it. Episodes that errored are counted and left
    out; if the stage is started again before it is finished, they are tried again.

    Args:
        policy: The weights.
        this_round: The round.

    Returns:
        Failures and successes, each in the order of the training episodes.

    Raises:
        FateGymError: Not one episode could be scored.
        RunMismatchError: The stage's file was made from other inputs.
    """
    items, thresholds = this_round.items, this_round.config.collect.thresholds
    inputs = {**this_round.inputs(policy), "items": [item.key for item in items], "thresholds": list(thresholds)}
    tokens = this_round.tokens_for("collect")
    inputs |= {} if tokens is None else {"budget": tokens}

    def record(episode: Episode) -> dict[str, Json]:
        return episode_record(episode, failed=failed(episode, thresholds))

    # The keys of the episodes and the thresholds stand in the header: with others, these would be other failures.
    with this_round.stage_file("collect", inputs) as file:
        if file.finished is None:
            with this_round.agent(policy, "collect") as agent:
                errors = roll_out("collect", file, items, agent, record, this_round)
            failures = sum(line.flag("failed") for line in file.done.values())
            counts: dict[str, Json] = {"errors": errors, "failed": failures, "tokens": tokens_in(file)}
            # In the order of the plan, not of their ends: that order depends on how busy the machine was.
            file.finish([item.key for item in items], counts)
        outcomes = [(read_episode(line, "failed"), line.flag("failed")) for line in file.records]
    return [one for one, is_failure in outcomes if is_failure], [one for one, is_failure in outcomes if not is_failure]


def failed(episode: Episode, thresholds: Sequence[float]) -> bool:
    """Whether an active axis is below its threshold (FATE, section 4.2.2)."""
    graded = zip(vector(episode), mask(episode), thresholds, strict=True)
    return any(active and value < least for value, active, least in graded)
