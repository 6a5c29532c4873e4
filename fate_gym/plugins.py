"""Code that the user names: modules with agents, benchmarks and judges, and what is said when such code raises."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from fate_gym.errors import PluginError, UsageError, did_you_mean

_OURS = ("fate_gym", "asyncio", "concurrent", "importlib", "_frozen_importlib", "_frozen_importlib_external")
"""Packages whose calls stand between a command and the user's code."""


_imported: dict[str, None] = {}


def imported_plugins() -> tuple[str, ...]:
    """Returns the names of the modules that the user has named so far, in that order."""
    return tuple(_imported)


def import_plugin(name: str) -> ModuleType:
    """Imports a module that the user named; it may stand in the current folder.

    That folder is searched last, so that no file in it stands in for an installed module, and only once the user has
    named a module: whoever works inside a stranger's folder runs none of its code.

    Raises:
        UsageError: There is no such module.
        PluginError: The module raised while it was imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is not the name of a module")
    folder = os.getcwd()
    if folder not in sys.path and name.partition(".")[0] != "fate_gym":
        sys.path.append(folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"there is no module {name!r}, neither in {folder} nor installed") from None
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error
    _imported[name] = None
    return module


def load_plugin(target: str) -> Any:
    """Returns what "module:name" names in a module of the user's.

    Raises:
        UsageError: There is no such module, or nothing of this name in it.
        PluginError: The module raised while it was imported.
    """
    module_name, _, name = target.partition(":")
    if not name.isidentifier():
        raise UsageError(f"{target!r} must be MODULE:NAME")
    module = import_plugin(module_name)
    if not hasattr(module, name):
        known = [known for known in vars(module) if not known.startswith("_")]
        raise UsageError(f"the module {module_name!r} has nothing named {name!r}{did_you_mean(name, known)}")
    return getattr(module, name)


def user_frames(error: BaseException) -> TracebackType | None:
    """Returns the traceback of an exception from the first line of the user's on; the whole if there is none."""
    if isinstance(error, SyntaxError):
        return None  # Its text shows the line, and no line of the user's has run.
    frames = error.__traceback__
    while frames is not None and _is_ours(frames):
        frames = frames.tb_next
    return frames or error.__traceback__


def place(error: BaseException) -> str:
    """Names an exception and the line that raised it: what two failures of one bug have in common."""
    last = traceback.extract_tb(user_frames(error))[-1:]
    where = f" in {Path(last[0].filename).name}, line {last[0].lineno}" if last else ""
    return f"{type(error).__name__}{where}"


def _failed(name: str, error: Exception) -> PluginError:
    return PluginError(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}")


def _is_ours(frames: TracebackType) -> bool:
    return str(frames.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in _OURS
