"""What the writer or a reader of a run knows of its scored episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from fate_gym.evaluation.finished import Finished
from fate_gym.evaluation.keys import Keys, Places
from fate_gym.evaluation.summary import Tally
from fate_gym.storage import BEGINNING, Place


@dataclass(slots=True)
class Scored:
    """What is known of the scored episodes. Their file only grows, so nothing is read twice, nor what was written here.

    Attributes:
        file: Device and inode; another file may take its place. None where there was none.
        modified: When this process last wrote it, in ns; None where it has not.
        edited: Whether another program has written into it meanwhile, so that it must be read anew in the end.
        place: The last line that was read.
        keys: The keys of all lines that were read.
        places: Where the episodes stand; lines that are none are left out.
        tally: What the episodes add up to.
    """

    file: tuple[int, int] | None
    modified: int | None = None
    edited: bool = False
    place: Place = BEGINNING
    keys: Keys = field(default_factory=Keys)
    places: Places = field(default_factory=Places)
    tally: Tally = field(default_factory=Tally)

    @property
    def counted(self) -> Keys:
        """The keys of the episodes, without those of lines that are none."""
        return self.keys if len(self.keys) == len(self.places.keys) else Keys(self.places.keys)

    def count(self, written: Finished) -> None:
        """Counts an episode whose line has been written after the last one."""
        line, _, start = self.place
        self.place = Place(line + 1, start, start + len(written.line))
        self.keys.add(written.key)
        self.places.note(written.key, self.place)
        self.tally.add(written.result, written.usage, written.seconds)
