"""Episodes in the stage files of a training, and what stages read from them."""

from __future__ import annotations

from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.episode import SCHEMA, Episode
from fate_gym.storage import Fields


def vector(episode: Episode) -> tuple[float, ...]:
    """Returns the reward vector in the order of `fate_gym.rewards.AXES`, (4,).

    In double precision: `Verdict.vector` is float32, in which a validity of 0.9 lies below the threshold 0.9.
    """
    return tuple(float(axis.value) for axis in episode.verdict.axes.values())


def mask(episode: Episode) -> tuple[bool, ...]:
    """Returns which axes count, (4,)."""
    return tuple(axis.active for axis in episode.verdict.axes.values())


def policy_tokens(episode: Episode) -> int:
    """Returns the number of tokens that the policy sampled, 0 if they are not known as one sequence."""
    return sum(episode.trajectory.mask) if episode.trajectory else 0


def episode_record(episode: Episode, **own: Json) -> dict[str, Json]:
    """Returns the record of an episode in a stage file: the episode with its token ids, and the stage's own fields."""
    return {**episode.to_json(tokens=True), **own}


def read_episode(line: Fields, *own: str) -> Episode:
    """Reads the episode of a record.

    Args:
        line: The record.
        own: Names of the stage's own fields in it.

    Raises:
        RunCorruptError: A field is missing or has another type.
    """
    record = {name: value for name, value in line.values.items() if name not in own}
    return Episode.from_json(record if "schema" in record else _from_version_1(record), line.where)


_SAME: Final = (
    "key",
    "task_id",
    "mode",
    "suite",
    "cluster",
    "attack",
    "seed",
    "status",
    "ended",
    "verdict",
    "messages",
    "trajectory",
)


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    """Translates a record of the first version of stage files, which held a part of an episode under other names."""
    same: dict[str, Any] = {name: record[name] for name in _SAME if name in record}
    return {
        **same,
        "schema": SCHEMA,
        "repeat": 0,
        "metadata": {"split": record.get("split"), "contaminated_by": record.get("contaminated_by", [])},
        "error": None,
        "truncated": record.get("ended") not in (None, "answer"),
        "injections": {},
        "injection_reached": record.get("reached"),
        "actions": [],
        "calls": [],
        "usage": {},
        "attempts": 0,
        "seconds": {"total": 0.0, "agent": 0.0},
    }
