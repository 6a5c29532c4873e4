"""Snapshots: opaque bytes that hold plain data only, so that reading one can run no code."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

from fate_gym.errors import SnapshotError

_MAGIC = b"fate-gym snapshot 1\n"
_DIGEST = 16


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, bytes and containers of them; any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise SnapshotError(f"this snapshot refers to {module}.{name}; snapshots hold plain data only")


def pack(fingerprint: str, state: object) -> bytes:
    """Packs plain data, signed with what it belongs to."""
    body = pickle.dumps(state, protocol=5)
    return _MAGIC + _digest(fingerprint.encode()) + _digest(body) + body


def unpack(fingerprint: str, snapshot: bytes) -> Any:
    """Unpacks what `pack` gave.

    Raises:
        SnapshotError: The bytes are damaged, or were packed with another fingerprint.
    """
    head = len(_MAGIC)
    if snapshot[:head] != _MAGIC:
        raise SnapshotError("these bytes are no snapshot of this version of fate-gym")
    if snapshot[head : head + _DIGEST] != _digest(fingerprint.encode()):
        raise SnapshotError(
            "this snapshot belongs to an environment of another specification; "
            "restore it in one made with the same id and options"
        )
    body = snapshot[head + 2 * _DIGEST :]
    if snapshot[head + _DIGEST : head + 2 * _DIGEST] != _digest(body):
        raise SnapshotError("this snapshot is damaged: its checksum does not match")
    return _PlainUnpickler(io.BytesIO(body)).load()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
