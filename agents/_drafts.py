"""Guesses of what a model will write, from what it has read and written before.

A model that is sure of itself repeats itself: it calls the tools of a task as it did last time, and copies names and
numbers from what they answer. A forward pass over some guessed tokens costs little more than one over a single token,
and shows what the model would have written after each of them. Those that it writes itself are kept, so a guess changes
no sample, only the time that it takes (prompt lookup decoding, Saxena, 2023; speculative decoding, Leviathan et al.,
2023, with samples that are a function of random numbers drawn in advance).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Final

ALIKE: Final = 4
"""How many last tokens a place must share with an earlier one to go on as it did. Fewer guess more, and worse."""


class Drafts:
    """Remembers what followed each few tokens, the last time. Used from several threads.

    Args:
        capacity: Most places that are remembered; the oldest ones are forgotten beyond it.
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self._capacity = capacity
        self._places: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}
        self._lock = threading.Lock()

    def learn(self, ids: tuple[int, ...], read: int, written: int) -> None:
        """Remembers a sequence.

        Args:
            ids: The sequence.
            read: Where what is new begins.
            written: Where what the model wrote begins; that is likelier to be written again than what it only read.
        """
        with self._lock:
            for place in range(max(read, ALIKE), len(ids)):
                before = ids[place - ALIKE : place]
                if place >= written or before not in self._places:
                    self._places.pop(before, None)
                    self._places[before] = (ids, place)
            for oldest in [*itertools.islice(self._places, max(0, len(self._places) - self._capacity))]:
                del self._places[oldest]

    def guess(self, last: Sequence[int], most: int) -> Sequence[int]:
        """Returns tokens that may follow, at most `most` of them.

        Args:
            last: The last tokens, at least `ALIKE` unless there are no more.
            most: Most tokens.
        """
        ids, place = self._places.get(tuple(last[-ALIKE:]), ((), 0))
        return ids[place : place + most]
