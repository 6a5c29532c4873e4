"""Command lines as argparse reads them; errors are one line, with the word that was probably meant."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fate_gym.cli.terminal import err, out
from fate_gym.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class _Layout(argparse.RawDescriptionHelpFormatter):
    """Breaks sentences between words, never inside of an option's name, and keeps the lines of an epilog."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser that prints through the terminal's door and raises `UsageError` instead of leaving the program.

    Args:
        examples: Command lines for the end of the help, without `fate-gym`.
        **options: Options of argparse's own parser.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        # An abbreviation that works today means something else once a second option begins like it.
        super().__init__(**{"allow_abbrev": False, "add_help": False, "formatter_class": _Layout, **options})
        if examples:
            shown = "\n".join(["examples:", *(f"  fate-gym {example}" for example in examples)])
            self.epilog = f"{shown}\n\n{self.epilog or ''}".rstrip("\n")
        self._positionals.title = "arguments"
        self.add_argument("-h", "--help", action="help", help="Show this help and exit.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses what it knows, and refuses unknown options here, where the known ones are at hand."""
        namespace, rest = super().parse_known_args(args, namespace)
        for text in rest:
            if text.startswith("-"):
                option = text.partition("=")[0]
                self.error(f"there is no option {option}{did_you_mean(option, self._option_string_actions)}")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` with the message, and says where help is."""
        match = re.fullmatch(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if match:
            name, given, choices = match.groups()
            known = re.findall(r"[^\s',]+", choices)
            message = f"{name}: there is no {given!r}{did_you_mean(given, known)}; there are: {', '.join(known)}"
        raise UsageError(f"{message} (`{self.prog} --help` explains)")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        (err if file is sys.stderr else out).text(message.rstrip("\n"))
