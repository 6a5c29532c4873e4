"""What is handed over of an episode by whoever played it, so that the one who writes has nothing left to compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fate_gym.episode import Episode
from fate_gym.evaluation.results import Result
from fate_gym.storage import SURROGATE, encode_line, parse


class Finished(NamedTuple):
    """A finished episode as a run takes it: its line, and what is counted of it.

    Lines are made where episodes are played, in many processes, and go to the disk as they are. One process writes them
    all, and an episode that it read anew would cost it as much as a reply of a server.

    Attributes:
        key: Its identity in the run.
        line: The line of the file that it belongs in.
        result: What it came to.
        usage: As in the episode.
        seconds: How long it took in all; None where that is unknown.
        acted: Whether the agent took a turn at all.
    """

    key: str
    line: bytes
    result: Result
    usage: Mapping[str, float]
    seconds: float | None
    acted: bool

    @classmethod
    def of(cls, episode: Episode) -> Finished:
        """Makes it of an episode.

        Raises:
            ValueError: The episode cannot be written as JSON, or a name in it not as it is.
        """
        for name in ("key", "task_id", "suite", "cluster"):
            if SURROGATE.search(text := getattr(episode, name)):
                raise ValueError(f"an episode's {name} must be valid Unicode, not {text!r}")
        line, seconds = encode_line(episode.to_json()), episode.seconds["total"]
        return cls(episode.key, line, Result.of(episode), episode.usage, seconds, bool(episode.actions))

    def episode(self) -> Episode:
        """Returns the episode as the run holds it: without the token ids that a local model sampled."""
        return Episode.from_json(parse(self.line))
