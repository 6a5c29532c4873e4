"""Entry point of `fate-gym`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import gymnasium as gym

import fate_gym
from fate_gym.cli import data, evaluating, leaderboard, listing, recorded, showing, training
from fate_gym.cli.parser import Parser
from fate_gym.cli.stopping import Stopped, stoppable
from fate_gym.cli.terminal import OutputError, err, show_warning
from fate_gym.errors import DiskError, FateGymError, PluginError, RunMismatchError
from fate_gym.plugins import user_frames

_UNUSABLE, _REFUSED, _READER_GONE = 2, 3, 141

_EXIT_CODES: Final = """exit codes:
  0    The command did what was asked.
  1    Some episodes have an error, a check found a difference, or a run was
       left out of a leaderboard.
  2    The command line, the settings or a given file cannot be used.
  3    The system refused to read or write: a full disk, a missing folder,
       no permission, standard output that takes nothing.
  130  Interrupted by Ctrl-C.  143: terminated by SIGTERM.
  141  The reader of the output has gone, as with `| head`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = argparse.Namespace(resumable=False)
    try:
        with stoppable():
            options = _parse(arguments)
            code: int = options.run(options)
            return code
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        err.line(f"{stop}{' The same command goes on from here.' * options.resumable}")
        return stop.exit_code
    except OutputError as error:
        return _READER_GONE if error.reader_gone else _failed(error, _REFUSED)
    except (FileExistsError, NotADirectoryError) as error:
        return _failed(f"{error.filename} is a file, where a folder is needed: give another path", _UNUSABLE)
    except (OSError, DiskError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        kept = ". Once this is mended, the same command goes on from what is on disk."
        return _failed(reason + kept * options.resumable, _REFUSED)
    except PluginError as error:
        if error.__cause__ is not None:
            _show_trace(type(error.__cause__), error.__cause__, user_frames(error.__cause__))
        return _failed(error, _UNUSABLE)
    except (FateGymError, gym.error.Error) as error:
        return _failed(error, _UNUSABLE)


def run_program() -> int:
    """Runs the command of this process; warnings and bugs, too, are printed through the terminal's door."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A character that the user's encoding lacks is named, and ends no command.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = show_warning
    logging.getLogger().addHandler(_LogLines())
    sys.excepthook = _show_trace
    code = main()
    if code > 128:
        # At once: threads that the signal left behind would keep Python from exiting until they end.
        _flush()
        os._exit(code)
    return code


def make_parser() -> Parser:
    """Makes the parser of all commands; the documentation lists them from it."""
    parser = Parser(
        prog="fate-gym",
        description="Gymnasium environments, an evaluation harness and trainers for the safety of tool-using LLM "
        "agents. `fate-gym COMMAND --help` explains a command.",
        examples=[
            "eval --config demo",
            "eval --agent openai:gpt-4o-mini --attack none direct --dry-run",
            "show runs",
        ],
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"fate-gym {fate_gym.__version__}",
        help="Show the version of the package and exit.",
    )
    parser.set_defaults(resumable=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (evaluating, training, showing, leaderboard, recorded, listing, data):
        module.add_commands(commands)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    options: argparse.Namespace
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one stretch; `train` has some on both sides of its flags.
    if rest and not hasattr(options, "settings"):
        parser.error(f"too many arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest
    return options


def _failed(error: Exception | str, code: int) -> int:
    # The difference between two runs is a list; any other error is one line, however a server or a parser broke it.
    if isinstance(error, RunMismatchError):
        err.text(f"fate-gym: {error}")
    else:
        err.line(f"fate-gym: {' '.join(str(error).split())}")
    return code


def _reason(error: OSError) -> str:
    """Says what the system refused, and at which file."""
    what = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {what}" if error.filename else what


class _LogLines(logging.Handler):
    """Prints what the package and its libraries log; texts of servers are in it."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_text and record.name == "fate_gym":
            err.text(record.exc_text)
        err.line(f"{record.levelname.lower()}: {record.getMessage()}")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _show_trace(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """Prints an exception with its traceback: its text, too, may come from a model."""
    *frames, last = traceback.format_exception(kind, error, trace)
    err.text("".join(frames).rstrip("\n"))
    err.line(last.rstrip("\n"))


if __name__ == "__main__":
    sys.exit(run_program())
