"""Stage 4, the warm-up: supervised learning on the chosen repairs, before policy optimisation."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from fate_gym.episode import Episode, Trajectory
from fate_gym.trainers.algorithms.dpo import Pair, dpo
from fate_gym.trainers.algorithms.sequences import Example
from fate_gym.trainers.algorithms.supervised import learn_examples
from fate_gym.trainers.config import ExampleSettings
from fate_gym.trainers.episodes import policy_tokens
from fate_gym.trainers.marks import Origin, mark
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages.repair import Repair


def warm_up(policy: str, chosen: Sequence[Repair], successes: Sequence[Episode], this_round: Round) -> str:
    """Learns from the chosen repairs, and from what else the method learns from.

    Args:
        policy: The weights to start from.
        chosen: The chosen repairs.
        successes: The successes of the round.
        this_round: The round.

    Returns:
        The folder of the new policy; `policy` itself if the method has no warm-up, or there is nothing to learn.

    Raises:
        RunMismatchError: The folder of the warm-up was made from other data or settings.
        FateGymError: The loss or the gradient is not finite.
    """
    config, method, seed = this_round.config, this_round.method, this_round.seed("warmup")
    if method.warm_up is None:
        return policy
    pairs, examples = list[Pair](), list[Example]()
    if method.warm_up == "preferences":
        pairs = preferences(chosen)
    elif method.warm_up == "successes":
        examples = from_successes(successes)
    else:
        # The baseline SFT is the same without successes, which are what keeps FATE from refusing too much.
        known = successes if method.warm_up == "repairs" else ()
        examples = from_repairs(chosen, known, config.examples, seed)
    if not (pairs or examples):
        this_round.skip("warmup", "nothing was there to learn from")
        return policy
    out = this_round.path / "warmup"
    loading: dict[str, Any] = {
        "lora": config.lora,
        "attention": config.attention,
        "chat_template": config.agent.get("chat_template"),
    }
    with this_round.update("warmup") as on_step:
        if pairs:
            settings = dataclasses.replace(config.dpo, seed=seed)
            dpo(policy, pairs, settings, out, **loading, on_step=on_step)
        elif config.warmup is not None:
            supervised = dataclasses.replace(config.warmup, seed=seed)
            learn_examples(policy, examples, supervised, out, **loading, on_step=on_step)
        # All successes, also those that were not drawn as anchors: a mark may say too much, never too little.
        learned = [*(repair.attempt for repair in chosen), *successes]
        mark(
            out,
            [Origin.of(episode.suite, episode.metadata) for episode in learned],
            earlier=policy,
            **this_round.provenance,
        )
    return str(out)


def from_repairs(
    repairs: Sequence[Repair], successes: Sequence[Episode], settings: ExampleSettings, seed: int
) -> list[Example]:
    """Makes the warm-up's examples (FATE, section 4.3): (p_f, a*), its copy after x, and benign successes.

    Args:
        repairs: One a* for each repaired failure.
        successes: Successes of the same round, of which some or all are learned too.
        settings: Which examples are made, and with which weights.
        seed: Decides which successes are taken, if there are more than needed.
    """
    examples = []
    for repair in repairs:
        tokens, failed = _tokens(repair.attempt), repair.failure.trajectory
        # The failure began with the plain task, so its prompt is x; it is unknown where the failure has no token ids.
        task_prompt = failed.prompt_ids if failed else None
        if settings.repair_prompt and tokens.prompt_ids != task_prompt:
            examples.append(_example(tokens.prompt_ids, tokens, settings.repair_prompt))
        if settings.task_prompt and task_prompt:
            examples.append(_example(task_prompt, tokens, settings.task_prompt))
    if settings.successes:
        return examples + from_successes(successes)
    benign = [episode for episode in successes if episode.mode == "benign" and policy_tokens(episode)]
    count = round(settings.anchor * len(repairs)) if benign else 0
    rng = random.Random(f"{seed}/anchor")  # noqa: S311 (no secret)
    anchors: list[Episode] = []
    while len(anchors) < count:
        # Without replacement, pass by pass: no success is repeated before all have been taken.
        anchors += rng.sample(benign, min(len(benign), count - len(anchors)))
    return examples + from_successes(anchors)


def from_successes(successes: Sequence[Episode]) -> list[Example]:
    """Makes an example of each success that has token ids; RFT learns from all of them."""
    known = [_tokens(episode) for episode in successes if policy_tokens(episode)]
    return [_example(tokens.prompt_ids, tokens, 1.0) for tokens in known]


def preferences(repairs: Sequence[Repair]) -> list[Pair]:
    """Makes DPO's pairs after the plain task: a repair is preferred over the failure that it repairs."""
    known = [repair for repair in repairs if policy_tokens(repair.attempt) and policy_tokens(repair.failure)]
    both = [(_tokens(repair.attempt), _tokens(repair.failure)) for repair in known]
    return [
        Pair(_example(failed.prompt_ids, attempt, 1.0), _example(failed.prompt_ids, failed, 1.0))
        for attempt, failed in both
    ]


def _example(prompt_ids: Sequence[int], tokens: Trajectory, weight: float) -> Example:
    return Example(tuple(prompt_ids), tuple(tokens.completion_ids), tuple(tokens.mask), weight)


def _tokens(episode: Episode) -> Trajectory:
    if episode.trajectory is None:
        raise ValueError(f"{episode.key} has no token ids, and cannot be learned from")
    return episode.trajectory
