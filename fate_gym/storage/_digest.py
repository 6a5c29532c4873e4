"""Digests of files and folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fate_gym.storage._json import digest


def file_digest(path: Path) -> str:
    """Returns the SHA-256, in hex, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(path: Path) -> str:
    """Returns one SHA-256, in hex, over names and contents of a folder's files, such as a policy's."""
    files = {str(file.relative_to(path)): file_digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return digest(files)
