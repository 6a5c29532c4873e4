"""Snapshots: opaque bytes of an episode's state. Reading one can run no code and import nothing.

A snapshot is a magic line, a digest of the specification that it belongs to, a digest of the rest, the state as JSON
with its length in front, and the bytes of the world's own state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fate_gym.benchmark import Benchmark
from fate_gym.chat import Json
from fate_gym.errors import SnapshotError

_MAGIC = b"fate-gym snapshot 3\n"
_DIGEST = 16
_LENGTH = 8
_HEAD = len(_MAGIC) + 2 * _DIGEST


def fingerprint(benchmark: Benchmark, max_turns: int, max_messages: int | None, verbatim: bool) -> str:
    """Returns a text that is equal for environments which may exchange snapshots: benchmark, tasks, options, loop."""
    kind = type(benchmark)
    parts = [max_turns, max_messages, verbatim, dict(benchmark.options), benchmark.tasks]
    described = json.dumps(parts, default=_name, sort_keys=True)
    return f"{kind.__module__}:{kind.__qualname__}:{hashlib.sha256(described.encode()).hexdigest()}"


def pack(belongs_to: str, state: Mapping[str, Json], world: bytes) -> bytes:
    """Packs the state of an episode with the fingerprint of the environment that it belongs to."""
    text = json.dumps(state).encode()
    body = len(text).to_bytes(_LENGTH, "big") + text + world
    return _MAGIC + _digest(belongs_to.encode()) + _digest(body) + body


def unpack(belongs_to: str, snapshot: bytes) -> tuple[dict[str, Any], bytes]:
    """Unpacks what `pack` gave.

    Raises:
        SnapshotError: The bytes are damaged, or were packed with another fingerprint.
    """
    if not isinstance(snapshot, bytes) or snapshot[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError("these bytes are not a snapshot of this version of fate-gym")
    if snapshot[len(_MAGIC) : _HEAD - _DIGEST] != _digest(belongs_to.encode()):
        raise SnapshotError(
            "this snapshot belongs to an environment of another specification; "
            "restore it in one made with the same id and options"
        )
    body = snapshot[_HEAD:]
    if snapshot[_HEAD - _DIGEST : _HEAD] != _digest(body):
        raise SnapshotError("this snapshot is damaged: its checksum does not match")
    end = _LENGTH + int.from_bytes(body[:_LENGTH], "big")
    try:
        state = json.loads(body[_LENGTH:end])
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"this snapshot holds no state of an episode: {error}") from error
    if not isinstance(state, dict):
        raise SnapshotError("this snapshot holds no state of an episode")
    return state, body[end:]


def _name(option: object) -> str:
    return str(getattr(option, "__qualname__", None) or option)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
