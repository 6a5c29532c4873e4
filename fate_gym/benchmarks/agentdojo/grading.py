"""DeepDiff without the parts that are equal, for AgentDojo's graders, inside `fast_grading()` and nowhere else.

Some graders diff the whole environment before and after (`WorkspaceDeepDiff`, `TravelDeepDiff`): 150 ms or more, of
which nearly all goes into walking what did not change. DeepDiff asks its custom operators at every level before it
looks at it; ours answers "nothing to report" where both sides are the same. The walk, the paths and the report of all
other levels stay DeepDiff's own, so the result is equal by construction.
"""

import datetime
import functools
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from pydantic import BaseModel

_active: ContextVar[bool] = ContextVar("fate_gym_agentdojo_fast_grading", default=False)
_SUITES = "agentdojo.default_suites"
_DIFFS = {
    f"{_SUITES}.v1.workspace.task_suite": "WorkspaceDeepDiff",
    f"{_SUITES}.v1.travel.task_suite": "TravelDeepDiff",
}
_ATOMS = frozenset({str, int, float, bool, type(None), datetime.datetime, datetime.date})


@contextmanager
def fast_grading() -> Iterator[None]:
    """Make AgentDojo's graders diff environments fast, with equal results, in this thread or task."""
    _install()
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def same(left: Any, right: Any) -> bool:
    """Whether DeepDiff would find nothing to report; False where that is not sure.

    Stricter than `==`, which holds 1, 1.0 and True equal, and an enum's member and its value: DeepDiff reports a
    change of type.
    """
    if left is right:
        return True
    kind = type(left)
    if kind is not type(right):
        return False
    if kind in _ATOMS:
        return bool(left == right)
    if kind is list:
        return len(left) == len(right) and _all_same(zip(left, right, strict=True))
    if isinstance(left, BaseModel):
        kind, left, right = dict, left.__dict__, right.__dict__
    if kind is dict:
        return left.keys() == right.keys() and _all_same((value, right[key]) for key, value in left.items())
    return False


def _all_same(pairs: Iterable[tuple[Any, Any]]) -> bool:
    for left, right in pairs:
        if left is right:
            continue
        # Most values are atoms, and a call for each of them would be most of the time.
        kind = type(left)
        if kind in _ATOMS:
            if kind is not type(right) or left != right:
                return False
        elif not same(left, right):
            return False
    return True


class _SkipSame:
    """A custom operator of DeepDiff."""

    def match(self, level: Any) -> bool:
        try:
            return same(level.t1, level.t2)
        except RecursionError:  # an environment that holds itself, which DeepDiff can walk
            return False

    def give_up_diffing(self, level: Any, diff_instance: Any) -> bool:
        return True

    def normalize_value_for_hashing(self, parent: str, obj: Any) -> Any:
        return obj


class _PrunedDiff(partial):  # type: ignore[type-arg]
    """Stands in for a partial of DeepDiff in a grader's globals, and is one still."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if _active.get() and len(args) == 2 and not kwargs:
            return super().__call__(*args, custom_operators=[_SkipSame()])
        return super().__call__(*args, **kwargs)


@functools.cache
def _install() -> None:
    # Graders import the name into their own modules, all of which `load_suites` imports.
    importlib.import_module("agentdojo.task_suite.load_suites")
    modules = [module for name, module in sys.modules.copy().items() if name.startswith(_SUITES)]
    for home, name in _DIFFS.items():
        slow = getattr(sys.modules[home], name)
        fast = _PrunedDiff(slow.func, *slow.args, **slow.keywords)
        for module in modules:
            if vars(module).get(name) is slow:
                vars(module)[name] = fast
