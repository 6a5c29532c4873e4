"""The commands that show or play an episode again, as a person copies them into a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fate_gym.episode import Episode
from fate_gym.leaderboards.groups import without_paths
from fate_gym.rendering import visible_line

RUN: Final = "RUN"
"""Stands for the run's folder: a page does not say where things lay, which names somebody's home."""

_LONGEST: Final = 2_000


def commands(episode: Episode, config: Mapping[str, Any]) -> dict[str, str]:
    """Returns what shows the episode in a terminal, and what plays its recorded actions again, by purpose.

    {} where a name holds what a shell or a page would not show as it is.

    Args:
        episode: The episode.
        config: The run's, as its manifest has it.
    """
    made = {
        "Show it in a terminal": ["fate-gym", "show", RUN, episode.key],
        "Play its actions again": ["fate-gym", "eval", "--agent", f"replay:{RUN}", *_settings(episode, config)],
    }
    lines = {purpose: shlex.join(words) for purpose, words in made.items()}
    plain = all(line.isascii() and visible_line(line) == line and len(line) <= _LONGEST for line in lines.values())
    return lines if plain else {}


def _settings(episode: Episode, config: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--env", config["env"])
    for name, value in without_paths(config).items():
        if value is not None and not (name == "attack" or isinstance(value, Mapping)):
            yield from ("--env-arg", f"{name}={json.dumps(value)}")
    if episode.attack is not None:
        yield from ("--attack", episode.attack)
    yield from ("--tasks", episode.task_id, "--seed", str(config.get("seed", 0)))
    if episode.repeat:
        yield from ("--repeats", str(episode.repeat + 1))
