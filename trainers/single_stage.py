"""One stage of a round by itself, from the files of the stages before it: `fate-gym train STAGE`."""

from __future__ import annotations

from fate_gym.trainers.algorithms.update_folder import Numbers
from fate_gym.trainers.base_policy import base_policy
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.methods import StageName
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages.collect import collect
from fate_gym.trainers.stages.optimise import optimise
from fate_gym.trainers.stages.repair import repair
from fate_gym.trainers.stages.select import select
from fate_gym.trainers.stages.warm_up import warm_up


def run_stage(stage: StageName, number: int, folder: TrainingFolder) -> Numbers | None:
    """Runs one stage of a round.

    Args:
        stage: The stage.
        number: The round, counted from 1.
        folder: The training, open.

    Returns:
        The counts of the stage; None if the method has no such stage, or there was nothing to learn.

    Raises:
        RunError: A stage before it is not finished.
    """
    this_round = Round(folder, number, only=stage)
    if not this_round.method.has_stage(stage):
        return None
    policy = _policy_before(number, folder)
    if stage == "pfpo":
        optimise(this_round.policy_after("warmup", policy), this_round)
        return this_round.outcome(stage)
    # The stages before `stage` only read their files: `only` makes an unfinished one an error.
    failures, successes = collect(policy, this_round)
    if stage != "collect":
        candidates = repair(policy, failures, this_round)
        if stage != "repair":
            chosen = select(failures, candidates, this_round)
            if stage != "select":
                warm_up(policy, chosen, successes, this_round)
    return this_round.outcome(stage)


def _policy_before(number: int, folder: TrainingFolder) -> str:
    """The policy that a round starts from: the base, or what the round before left."""
    policy = base_policy(folder)
    for earlier in range(1, number):
        this_round = Round(folder, earlier)
        policy = this_round.policy_after("pfpo" if this_round.method.optimises else "warmup", policy)
    return policy
