"""Where the pages of a run stand: addresses that people read, and that no name of a stranger can bend.

A page is named by its task, `important_instructions/banking/user_task_3/injection_task_5.html`, as far as the task's id
is such a name. Whatever else an id may hold becomes a slug with a hash, so that a page stays in its folder on any file
system, and two tasks never share one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from fate_gym.episode import Episode
from fate_gym.leaderboards.site.text import slug

_PLAIN: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,58}[A-Za-z0-9_])?")
_RESERVED: Final = frozenset(
    {"index", "con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
)
"""`index` is the run's own page; Windows takes the others for devices, whatever their suffix."""

_MOST_PARTS: Final = 6
_LONGEST: Final = 180


def part(name: str) -> str:
    """Returns a name as one part of an address: as it is, where every file system takes it, else as a slug."""
    stem = name.lower().partition(".")[0]
    plain = _PLAIN.fullmatch(name) and stem not in _RESERVED and not name.lower().endswith(".html")
    return name if plain else slug(name)


def page_of(episode: Episode) -> str:
    """Returns the address that an episode's attack, task and repeat give, below its run's folder."""
    names = episode.task_id.split("/")
    parts = [part(name) for name in ((episode.attack, *names) if episode.attack else names)]
    if len(parts) > _MOST_PARTS or sum(map(len, parts)) > _LONGEST:
        parts = [slug("/".join(names))]
    return "/".join(parts) + (f"-repeat-{episode.repeat}" if episode.repeat else "") + ".html"


def apart(pages: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the address of each key. Those that some file systems hold for the same get a hash of their keys.

    Args:
        pages: (key, address as `page_of` gives it).
    """
    listed = list(pages)
    counts = Counter(page.lower() for _, page in listed)
    return {
        key: page if counts[page.lower()] == 1 else f"{page.removesuffix('.html')}-{_digest(key)}.html"
        for key, page in listed
    }


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()[:12]
