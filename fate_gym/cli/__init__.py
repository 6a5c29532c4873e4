"""The command line: `fate-gym`. It alone sees every part of the package, each inside the command that needs it."""

from fate_gym.cli.main import main

__all__ = ["main"]
