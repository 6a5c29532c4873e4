"""Starts `fate-gym`: Ctrl-C and SIGTERM end it in one line from its first moment on.

This module stands outside the package, because importing anything inside `fate_gym` first imports Gymnasium and NumPy,
and an interrupt in those tenths of a second would print a traceback.
"""

import contextlib
import os
import signal
import sys

_PROCESS = os.getpid()


def main() -> int:
    """Runs the command line and returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from fate_gym.cli.main import run_program

    return run_program()


def _leave(number: int, frame: object) -> None:
    """Ends the process at once: before a command begins nothing is written, and files are whole at every moment."""
    # A process that was forked from this one inherits the handler, and has nothing to say.
    if os.getpid() == _PROCESS:
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
        with contextlib.suppress(OSError):
            os.write(2, show_cursor + (b"Interrupted.\n" if number == signal.SIGINT else b"Terminated.\n"))
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
