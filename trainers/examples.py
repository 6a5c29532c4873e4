"""What is learned from a round's files: examples for the warm-up and its baselines, pairs for DPO."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fate_gym.episode import Trajectory
from fate_gym.trainers.config import ExampleSettings
from fate_gym.trainers.episodes import Episode
from fate_gym.trainers.preferences import Pair
from fate_gym.trainers.sequences import Example


def from_repairs(
    repairs: Sequence[Episode], successes: Sequence[Episode], settings: ExampleSettings, seed: int
) -> list[Example]:
    """Makes the warm-up's examples (FATE, section 4.3): (p_f, a*), its copy under x, and benign successes.

    Args:
        repairs: One a* for each repaired failure.
        successes: Of the same round; the benign ones anchor the policy against over-refusal.
        settings: What is taken, and with which weight.
        seed: Decides which successes are taken, where there are more than needed.
    """
    examples = []
    for repair in repairs:
        if settings.p_f and _ids(repair).prompt_ids != repair.x_ids:
            examples.append(_example(repair, _ids(repair).prompt_ids, settings.p_f))
        if settings.x:
            examples.append(_example(repair, repair.x_ids, settings.x))
    benign = [episode for episode in successes if episode.mode == "benign" and episode.written]
    wanted = round(settings.anchor * len(repairs)) if benign else 0
    chance = random.Random(f"{seed}/anchor")  # noqa: S311 (no secret)
    anchors: list[Episode] = []
    while len(anchors) < wanted:
        anchors += chance.sample(benign, min(len(benign), wanted - len(anchors)))
    return examples + from_successes(anchors)


def from_successes(successes: Sequence[Episode]) -> list[Example]:
    """Makes an example of each success that came with its token ids: what RFT learns from."""
    return [_example(episode, _ids(episode).prompt_ids, 1.0) for episode in successes if episode.written]


def pairs(repairs: Sequence[Episode], failed: Sequence[Episode]) -> list[Pair]:
    """Makes DPO's pairs under the plain task: a repair, and the failure that it repairs.

    Args:
        repairs: The repairs.
        failed: The failure of each, in the same order.
    """
    return [
        Pair(_example(repair, repair.x_ids, 1.0), _example(failure, failure.x_ids, 1.0))
        for repair, failure in zip(repairs, failed, strict=True)
        if repair.written and failure.written
    ]


def _example(episode: Episode, prompt_ids: Sequence[int], weight: float) -> Example:
    tokens = _ids(episode)
    return Example(tuple(prompt_ids), tuple(tokens.completion_ids), tuple(tokens.mask), weight)


def _ids(episode: Episode) -> Trajectory:
    if episode.trajectory is None:
        raise ValueError(f"{episode.key} came without token ids, and cannot be learned from")
    return episode.trajectory
