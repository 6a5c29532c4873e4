"""Faults of the disk, below everything that writes: at one chosen call the process dies or the call fails.

`Disk.install` puts itself between Python and the system calls that change files: `os.open`, `os.write`, `os.fsync`,
`os.replace`, `os.mkdir`, ..., and what file objects do underneath. Every such call on a path under one folder is a
*point*; `visit` counts the points of an action, then does the action once for each point and fault, in a forked process
that the fault may kill.

What the page cache holds survives a kill, so that no kill can show a forgotten fsync. "power" does: it takes back
whatever was not synced, bytes and names, before it kills.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

Fault = Literal["kill", "power", "short", "full", "io"]
"""SIGKILL; a loss of power; a write of half the bytes; ENOSPC from now on; EIO once."""

FAULTS: tuple[Fault, ...] = get_args(Fault)

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
GROWING = ("open", "write", "mkdir", "fsync", "copy")
"""Calls that need space, and fail on a full disk."""


@dataclass
class Disk:
    """A disk that counts the calls that change files, and spoils one.

    Args:
        root: Only what happens under this folder, the folder included, is counted.
        fault: None to count alone.
        at: Number of the call that is spoilt, from 1.

    Attributes:
        points: The calls so far, as "write episodes.jsonl".
    """

    root: Path
    fault: Fault | None = None
    at: int = 0
    points: list[str] = field(default_factory=list)
    _full: bool = False
    _paths: dict[int, str] = field(default_factory=dict)
    _synced: dict[str, int] = field(default_factory=dict)
    _names: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    _inodes: dict[int, int] = field(default_factory=dict)

    def install(self) -> None:
        """Takes the place of the system calls, for the rest of this process's life."""
        disk = self
        # What is there already was synced long ago.
        for path in self.root.rglob("*"):
            self._inodes[path.stat().st_ino] = path.stat().st_size

        class File(io.FileIO):
            """What `open` gives for writing, at the bottom of its layers of buffers."""

            def __init__(self, path: Any, mode: str, opener: Any = None) -> None:
                known = not isinstance(path, int) and disk.holds(path)
                if known:
                    disk._opening(os.path.abspath(path), truncates="w" in mode)
                super().__init__(path, mode, opener=opener)
                if known:
                    disk._paths[self.fileno()] = os.path.abspath(path)

            def write(self, data: Any) -> int:
                return disk.write(self.fileno(), memoryview(data).cast("B"), super().write)

            def truncate(self, size: int | None = None) -> int:
                disk.point("truncate", disk._paths.get(self.fileno()))
                return super().truncate(size)

            def close(self) -> None:
                if not self.closed:
                    disk._paths.pop(self.fileno(), None)
                super().close()

        _open, _os_open, _os_write = io.open, os.open, os.write

        def open_file(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
                      newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
            ours = not isinstance(file, int) and any(letter in mode for letter in "wxa+") and disk.holds(file)
            if not ours:
                return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = File(os.fspath(file), mode.replace("b", "").replace("t", ""), opener)
            if buffering == 0:
                return raw
            size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
            buffer: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            # A temporary file without a name is opened by the name of its folder.
            ours = bool(flags & _WRITES) and disk.holds(path) and not os.path.isdir(path)
            if ours:
                disk._opening(os.path.abspath(path), truncates=bool(flags & os.O_TRUNC))
            fd = _os_open(path, flags, mode, dir_fd=dir_fd)
            # Folders are opened to be synced; the one above holds the name of the root.
            if ours or (flags & os.O_DIRECTORY and (disk.holds(path) or Path(path) == disk.root.parent)):
                disk._paths[fd] = os.path.abspath(path)
            return fd

        def os_close(fd: int, _close: Any = os.close) -> None:
            disk._paths.pop(fd, None)
            _close(fd)

        def os_write(fd: int, data: Any) -> int:
            return disk.write(fd, memoryview(data).cast("B"), lambda piece: _os_write(fd, piece))

        io.open = builtins.open = open_file  # type: ignore[assignment]
        os.open, os.close, os.write = os_open, os_close, os_write
        os.fsync = os.fdatasync = self._wrap_sync(os.fsync)
        os.ftruncate = self._wrap("truncate", os.ftruncate)
        os.truncate = self._wrap("truncate", os.truncate)
        os.replace = os.rename = self._wrap_rename(os.replace)
        os.mkdir = self._wrap_mkdir(os.mkdir)
        os.unlink = os.remove = self._wrap("unlink", os.unlink)
        os.rmdir = self._wrap("rmdir", os.rmdir)
        # Copies go by `os.write`, as they do where the system has no call of its own for them.
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]

    def holds(self, path: Any) -> bool:
        """Whether a path, or an open file, lies in the folder."""
        if isinstance(path, int):
            return path in self._paths
        try:
            text = os.path.abspath(os.fsdecode(path))
        except (TypeError, ValueError):
            return False
        return text == str(self.root) or text.startswith(f"{self.root}{os.sep}")

    def point(self, call: str, path: str | None) -> None:
        """Counts a call, and spoils it if it is the one."""
        if path is None:
            return
        self.points.append(f"{call} {os.path.relpath(path, self.root)}")
        if len(self.points) == self.at:
            match self.fault:
                case "kill" | "power":
                    self.die()
                case "full":
                    self._full = call in GROWING
                case "io":
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self._full and call in GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def write(self, fd: int, data: memoryview, write: Callable[[memoryview], int]) -> int:
        """Writes; the call that is spoilt writes half of it first."""
        path = self._paths.get(fd)
        if path is not None and len(self.points) + 1 == self.at and self.fault is not None and len(data) > 1:
            written = write(data[: len(data) // 2])
            self.point("write", path) if self.fault in ("kill", "power", "io") else self.points.append("write")
            self._full = self.fault == "full"
            return written
        self.point("write", path)
        return write(data)

    def die(self) -> NoReturn:
        """Kills the process; a loss of power takes back what was not synced."""
        if self.fault == "power":
            try:
                self._lose()
            except BaseException:
                # Not an error of the action's: a loss that fails would pass for one that is survived.
                traceback.print_exc()
                os._exit(5)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process goes on")

    def _lose(self) -> None:
        root, self.root = self.root, Path("/nowhere")
        for _, undo in reversed(self._names):
            undo()
        for name, size in self._synced.items():
            if os.path.exists(name) and os.path.getsize(name) > size:
                os.truncate(name, size)
        # Native code (weights, tokenizers) writes past us: what nobody synced is empty.
        for path in root.rglob("*"):
            if path.is_file() and str(path) not in self._synced:
                os.truncate(path, min(path.stat().st_size, self._inodes.get(path.stat().st_ino, 0)))
        self.root = root

    def _opening(self, path: str, *, truncates: bool) -> None:
        self.point("open", path)
        if not os.path.exists(path):
            self._names.append((os.path.dirname(path), lambda: _forget(path)))
            self._synced[path] = 0
        elif truncates:
            self._synced[path] = 0
        else:
            self._synced.setdefault(path, os.path.getsize(path))

    def _wrap(self, call: str, function: Any) -> Any:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.holds(path):
                self.point(call, self._paths[path] if isinstance(path, int) else os.path.abspath(path))
            return function(path, *args, **kwargs)

        return wrapped

    def _wrap_sync(self, function: Any) -> Any:
        def fsync(fd: Any) -> None:
            number = fd if isinstance(fd, int) else fd.fileno()
            path = self._paths.get(number) or self._path_of(number)
            self.point("fsync", path)
            function(number)
            self._inodes[os.fstat(number).st_ino] = os.fstat(number).st_size
            if path is not None and os.path.isdir(path):
                self._names = [(folder, undo) for folder, undo in self._names if folder != path]
            elif path is not None:
                self._synced[path] = os.fstat(number).st_size

        return fsync

    def _path_of(self, fd: int) -> str | None:
        """Names a file that was opened to be read: syncing by it is as good."""
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return None
        return path if self.holds(path) else None

    def _wrap_rename(self, function: Any) -> Any:
        def replace(source: Any, target: Any, **kwargs: Any) -> None:
            if not self.holds(target):
                return function(source, target, **kwargs)
            source, target = os.path.abspath(source), os.path.abspath(target)
            self.point("rename", target)
            old = Path(target).read_bytes() if os.path.isfile(target) else None
            function(source, target, **kwargs)
            if source in self._synced:
                self._synced[target] = self._synced.pop(source)
            self._names.append((os.path.dirname(target), lambda: _restore(target, old)))
            return None

        return replace

    def _wrap_mkdir(self, function: Any) -> Any:
        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if not self.holds(path) or os.path.exists(path):
                return function(path, *args, **kwargs)
            where = os.path.abspath(path)
            self.point("mkdir", where)
            function(path, *args, **kwargs)
            self._names.append((os.path.dirname(where), lambda: shutil.rmtree(where, ignore_errors=True)))
            return None

        return mkdir


def _forget(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


def _restore(path: str, old: bytes | None) -> None:
    if old is None:
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            _forget(path)
    else:
        Path(path).write_bytes(old)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a forked action ended.

    Attributes:
        point: The call that was spoilt, and its number; "" if none was.
        ended: "done"; "killed"; "error", an error that users are meant to see; "bug", any other exception.
        message: The error.
    """

    point: str
    ended: Literal["done", "killed", "error", "bug"]
    message: str = ""


def count(action: Callable[[Path], None], root: Path) -> list[str]:
    """Does an action on a sound disk, and returns its points."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        disk = Disk(root)
        _act(action, root, disk)
        os.set_blocking(writing, True)
        with os.fdopen(writing, "w") as pipe:
            pipe.write("\n".join(disk.points))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        points = pipe.read().split("\n")
    _, status = os.waitpid(process, 0)
    assert status == 0, f"the action fails on a sound disk: {status}"
    return points


def modules(action: Callable[[Path], None], root: Path) -> list[str]:
    """Does an action in a forked process, and returns the modules that it loads."""
    known, loaded = set(sys.modules), root.with_name(f"{root.name}-modules")

    def note(folder: Path) -> None:
        action(folder)
        loaded.write_text("\n".join(sorted(set(sys.modules) - known)))

    outcome = visit(note, root)
    assert outcome.ended == "done", outcome.message
    return loaded.read_text().split("\n")


def visit(action: Callable[[Path], None], root: Path, fault: Fault | None = None, at: int = 0) -> Outcome:
    """Does an action in a forked process, on a disk that spoils one call; or on a sound one."""
    note = root.with_name(f"{root.name}-outcome")
    note.unlink(missing_ok=True)
    if (process := os.fork()) == 0:
        os._exit(_act(action, root, Disk(root, fault, at), note))
    _, status = os.waitpid(process, 0)
    message = note.read_text() if note.exists() else ""
    if os.WIFSIGNALED(status):
        ended: Any = "killed" if os.WTERMSIG(status) == signal.SIGKILL else "bug"
    else:
        ended = {0: "done", 3: "error"}.get(os.WEXITSTATUS(status), "bug")
    return Outcome(f"{fault} at {at}" if fault else "", ended, message)


def _act(action: Callable[[Path], None], root: Path, disk: Disk, note: Path | None = None) -> int:
    """Returns the exit code; never raises, since a forked test must not go on as the test."""
    from fate_gym.errors import FateGymError

    try:
        disk.install()
        action(root)
        return 0
    except (FateGymError, OSError) as error:
        # The command line says either in one line; libraries that write checkpoints and plots raise the second.
        code, message = 3, f"{type(error).__name__}: {error}"
    except BaseException:
        code, message = 4, traceback.format_exc()
    if note is None:
        print(message, file=sys.stderr)
        os._exit(code)
    note.write_text(message)
    return code


def every(number: int, most: int) -> Iterator[int]:
    """Numbers from 1, at most so many of them, evenly spread, the first and the last included."""
    if number <= most:
        yield from range(1, number + 1)
    else:
        yield from sorted({1 + round(i * (number - 1) / (most - 1)) for i in range(most)})
