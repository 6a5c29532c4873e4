"""Files that are replaced as a whole, durably, and the error for a disk that refuses."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from fate_gym.errors import DiskError

_NATIVE_TROUBLE: Final = re.compile(
    r"\(os error \d+\)|PytorchStreamWriter|inline_container\.cc|No space left on device"
)
_LONGEST_REASON: Final = 200


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write that takes a name at the end of the block, if nothing was raised in it.

    At every moment, the name stands for the whole old content or the whole new content. The folder must exist: a folder
    that was removed while a program ran is an error, not something to make again.

    Raises:
        DiskError: The file system refused; the old content is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # On a full disk, half a temporary file would take the space that the next attempt needs.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, durably.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(path):
        if path.is_dir():
            return
        if not path.parent.exists():
            make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file covers its content only."""
    if os.name == "nt":  # Windows has no handle of a folder to sync.
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Makes a folder durable that other libraries have written, with all files and names below it.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(folder):
        for below, _, names in os.walk(folder, topdown=False):
            for name in names:
                # Windows syncs only what was opened for writing.
                fd = os.open(Path(below, name), os.O_RDWR if os.name == "nt" else os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            sync_folder(Path(below))


@contextlib.contextmanager
def native_disk_errors(path: Path) -> Iterator[None]:
    """Turns what libraries in native code raise where the disk refuses into a `DiskError` that names the folder.

    safetensors, tokenizers and PyTorch have error types of their own for it, and only their words tell.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if _NATIVE_TROUBLE.search(str(error)) is None:
            raise
        reason = str(error).strip().splitlines()[0][:_LONGEST_REASON]
        raise DiskError(f"{path} could not be written; the disk may be full ({reason})") from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of a write into a `DiskError` that names the file."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path} could not be written: {error.strerror or error}") from error
