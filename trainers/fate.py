"""FATE, failure-trajectory evolution: a policy that repairs its own failures, round after round.

`evolve` is Figure 1 of the paper from top to bottom, and `train` repeats it until it no longer helps. A policy is a
string that says where its weights are; episodes and repairs are values. Each stage also leaves a file, from which an
interrupted training is resumed: that is the business of `Round`, one layer below.
"""

from __future__ import annotations

from pathlib import Path

from fate_gym.trainers.base_policy import base_policy
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.gate import check_competence
from fate_gym.trainers.processes import is_first_process
from fate_gym.trainers.progress import ProgressReporter
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages.collect import collect
from fate_gym.trainers.stages.optimise import optimise
from fate_gym.trainers.stages.repair import repair
from fate_gym.trainers.stages.select import select
from fate_gym.trainers.stages.warm_up import warm_up
from fate_gym.trainers.study.records import RoundRecord, Summary
from fate_gym.trainers.study.scoring import score_dev, score_tests
from fate_gym.trainers.study.summary import describe, draw, record_of, summarise, volume_of, write_rounds


def evolve(policy: str, this_round: Round) -> str:
    """One round: the policy acts, fails, repairs its failures, and learns from the repairs.

    Args:
        policy: pi_t.
        this_round: Settings, tasks and files of the round.

    Returns:
        pi_{t+1}.
    """
    # Step 1. Rollouts a ~ pi_t(.|x) with reward vectors z(x, a); those below a threshold are the failures F_t.
    failures, successes = collect(policy, this_round)
    # Step 2. Repair prompts p_f from x, a and z; K candidates a'_k ~ pi_t(.|p_f) each, executed and scored.
    candidates = repair(policy, failures, this_round)
    # Step 3. Filter on four axes, Pareto front, and one a* per failure by R_pf.
    chosen = select(failures, candidates, this_round)
    # Step 4, first half. Supervised learning on (p_f, a*), on a* after x, and on benign successes.
    warmed = warm_up(policy, chosen, successes, this_round)
    # Step 4, second half. PFPO: groups of rollouts from the warmed policy, advantages from whole reward vectors.
    return optimise(warmed, this_round)


def train(
    config: TrainConfig, out: Path, *, progress: ProgressReporter | None = None, shared: Path | None = None
) -> Summary:
    """Trains the base policy, round after round, and scores it. The same call resumes an interrupted training.

    Several processes that a launcher started make the same call; each of them returns the summary.

    Args:
        config: The settings.
        out: The folder of the training.
        progress: Receives the progress.
        shared: Folder of the base policy and its scores, if several trainings share them.

    Returns:
        The content of `summary.json`.

    Raises:
        NotCompetentError: The base policy does too few tasks, or obeys too few attacks, to learn from (`config.gate`).
        RunMismatchError: The folder holds a training with other settings.
        RunLockedError: Another process trains in the folder.
        RunError: A file in the folder is damaged.
    """
    with TrainingFolder(config, out, progress, shared=shared) as folder:
        policies = [base_policy(folder)]
        # The gate judges the base policy by the first round's rollouts, which that round then finds in its stage file.
        failures, successes = collect(policies[0], Round(folder, 1))
        check_competence([*failures, *successes], config.gate)
        before = score_tests("before", policies[0], folder)
        rounds: list[RoundRecord] = [{"round": 0, "dev": score_dev(0, policies[0], folder)}]
        best = 0
        while len(rounds) <= config.rounds and len(rounds) - 1 - best < config.patience:
            this_round = Round(folder, len(rounds))
            if config.budget is not None and this_round.tokens_left() <= 0:
                break
            policies.append(evolve(policies[-1], this_round))
            rounds.append(record_of(this_round, score_dev(this_round.number, policies[-1], folder)))
            folder.progress.say(describe(rounds[-1]))
            # The base policy is no candidate: the result of a training is a policy that was trained.
            best = max(range(1, len(rounds)), key=lambda number: volume_of(rounds[number]))
            write_rounds(rounds, folder)
        after = score_tests("after", policies[best], folder)
        summary = summarise(rounds, best, policies[best], before, after, folder)
        if is_first_process():
            draw(rounds, folder)
    return summary
