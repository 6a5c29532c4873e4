"""Says what Python code asks of the operating system, by the interpreter's own audit hook (PEP 578).

Code cannot hide from the hook behind another name of the same function: CPython raises the events itself.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Beginnings of names of audit events: processes, networks, native code, changes of files and environment.
_FORBIDDEN = (
    "ctypes.", "fcntl.", "ftplib.", "http.", "imaplib.", "nntplib.", "os.chdir", "os.chflags", "os.chmod", "os.chown",
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.link", "os.lockf", "os.mkdir", "os.posix_spawn",
    "os.putenv", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setxattr", "os.spawn", "os.symlink",
    "os.system", "os.truncate", "os.unsetenv", "os.utime", "poplib.", "pty.", "shutil.", "signal.pthread_kill",
    "smtplib.", "socket.", "sqlite3.", "subprocess.", "syslog.", "telnetlib.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# A tool may be imported when it is first called; nothing else on the disk is its business, not even to read.
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class _Hook:
    """The one hook of this process; it stays for good, and sleeps while nobody watches.

    Attributes:
        events: What has been done since the watch began; None while nobody watches.
        others: Threads that were there before, such as a test runner's, which do work of their own.
    """

    events: list[str] | None = None
    others: frozenset[int] = frozenset()
    installed = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        events = self.events
        if events is None or threading.get_ident() in self.others:
            return
        if event == "open":
            if not _is_library_read(*arguments):
                events.append(f"open {arguments}")
        elif event.startswith(_FORBIDDEN):
            events.append(f"{event} {arguments}")


_hook = _Hook()


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gives a list that fills with what this thread and threads that it starts do to the machine."""
    if not _hook.installed:
        sys.addaudithook(_hook)
        _hook.installed = True
    _hook.others = frozenset(sys._current_frames()) - {threading.get_ident()}
    _hook.events = events = []
    try:
        yield events
    finally:
        _hook.events = None


def _is_library_read(path: object, mode: object, flags: int) -> bool:
    writes = bool(flags & _WRITE_FLAGS) or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
    return not writes and isinstance(path, str) and path.startswith(_LIBRARIES)
