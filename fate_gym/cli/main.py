"""Entry point of `fate-gym`.

Exit codes: 0 success, 1 some episodes errored, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import gymnasium as gym

import fate_gym
from fate_gym.cli import data, evaluating, leaderboard, listing, showing, training
from fate_gym.errors import FateGymError
from fate_gym.rendering import visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="fate-gym", description=str(fate_gym.__doc__).split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fate-gym {fate_gym.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (evaluating, training, showing, leaderboard, listing, data):
        module.add_commands(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one stretch; `train` has some on both sides of its flags.
    if rest and (not hasattr(options, "settings") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`, say) has had enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FateGymError, gym.error.Error) as error:
        sys.stderr.write(f"fate-gym: {visible(str(error))}\n")
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
