"""AgentDojo without the SDKs of model vendors.

AgentDojo's package of agents imports the SDKs of six vendors, which takes several times as long as all the rest. Suites
and attacks need four small modules of that package alone. So the package is entered without running it; whoever asks
for anything that it defines itself, such as `AgentPipeline`, makes it run then.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any, Final

EMPTY_FUNCTION_NAME: Final = "<empty-function-name>"
"""The name that AgentDojo's Google agent gives to a call without one; its tool execution asks that module for it."""

_AGENTS = "agentdojo.agent_pipeline"
_GOOGLE = f"{_AGENTS}.llms.google_llm"
_running = threading.RLock()


class _Unrun(ModuleType):
    """A module that runs when it is first asked for a name that nobody has set."""

    def __getattr__(self, name: str) -> Any:
        # The import system and `inspect` probe such names of any module.
        if name.startswith("__"):
            raise AttributeError(name)
        with _running:
            if type(self) is _Unrun:
                self.__class__ = ModuleType  # type: ignore[assignment]
                vars(self)["__loader__"].exec_module(self)
        return getattr(self, name)


def _enter(name: str, **known: Any) -> None:
    """Makes a module importable without running it, with some of its names already known."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Unrun
    vars(module).update(known)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)


_enter(_AGENTS)
_enter(_GOOGLE, EMPTY_FUNCTION_NAME=EMPTY_FUNCTION_NAME)
