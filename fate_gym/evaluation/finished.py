"""What is handed over of an episode by whoever played it, so that the one who writes has nothing left to compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fate_gym.episode import Episode
from fate_gym.evaluation.results import Result
from fate_gym.storage import MAX_LINE, encode_line, parse


class Finished(NamedTuple):
    """A finished episode as a run takes it: its line, and what is counted of it.

    Lines are made where episodes are played, in many processes, and go to the disk as they are: one process writes them
    all. What is counted is read back from the line, so that it is what every later reader counts, to the last bit.

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
            ValueError, TypeError: The episode cannot be written as JSON, or its line is too long, or not its key.
            RunCorruptError: It can be written, and no reader would take it for an episode.
        """
        line = encode_line(episode.to_json())
        if len(line) > MAX_LINE:
            raise ValueError(f"a record of {len(line)} bytes is longer than {MAX_LINE}")
        read = Episode.from_json(parse(line))
        if read.key != episode.key:
            raise ValueError(f"an episode's key must be valid Unicode, not {episode.key!r}")
        return cls(read.key, line, Result.of(read), read.usage, read.seconds["total"], bool(read.actions))

    def episode(self) -> Episode:
        """Returns the episode as the run holds it: without the token ids that a local model sampled."""
        return Episode.from_json(parse(self.line))
