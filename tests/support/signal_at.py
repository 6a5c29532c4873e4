"""Runs `fate-gym` and sends a signal to it the moment a module is first imported.

python signal_at.py SIGNAL MODULE ARGUMENTS...
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

START = Path(__file__).parents[2] / "fate_gym_start.py"


class SendingFinder:
    """Finds nothing; sees every import first."""

    def __init__(self, number: int, module: str) -> None:
        self._number = number
        self._module = module

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == self._module:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            sys.stderr.write("sent\n")
            os.kill(os.getpid(), self._number)
        return None


if __name__ == "__main__":
    _, number, module, *arguments = sys.argv
    sys.meta_path.insert(0, SendingFinder(getattr(signal, number), module))  # type: ignore[arg-type]
    sys.argv = [str(START), *arguments]
    runpy.run_path(str(START), run_name="__main__")
