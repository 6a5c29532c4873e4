"""Which of the processes that share one run this is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A process's share of what a run may use: requests a minute, processors, graphics cards.

    Attributes:
        index: Its number, from 0.
        of: Number of processes.
    """

    index: int = 0
    of: int = 1


_own = Share()


def own_share() -> Share:
    """Returns the share of this process: all of it, unless it was told otherwise."""
    return _own


def take_share(share: Share) -> None:
    """Tells this process its share, before agents and environments are made in it."""
    global _own
    _own = share
