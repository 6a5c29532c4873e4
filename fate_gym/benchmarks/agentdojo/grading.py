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
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo.switch import Switch

_fast = Switch("fate_gym_agentdojo_fast_grading")
_SUITES = "agentdojo.default_suites"
_DIFFS = {
    f"{_SUITES}.v1.workspace.task_suite": "WorkspaceDeepDiff",
    f"{_SUITES}.v1.travel.task_suite": "TravelDeepDiff",
}
_ATOMS = frozenset({str, int, float, bool, type(None), datetime.datetime, datetime.date})


def fast_grading() -> AbstractContextManager[None]:
    """Make AgentDojo's graders diff environments fast, with equal results, in this thread or task."""
    _install()
    return _fast.on()


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


def share_same(old: Any, new: Any) -> Any:
    """Gives two values that are the same to one object: parts of `new` become those of `old` that nothing tells apart.

    Whatever compares the two afterwards passes over such parts at once, and finds what it would have found: a part
    is replaced only where types, values, the order of keys and what pydantic notes of a model all agree.

    Args:
        old: A value of plain containers, atoms and models, which stays as it is.
        new: Another one, which is changed in place.

    Returns:
        `old` if nothing tells the two apart, `new` otherwise.
    """
    if old is new:
        return old
    kind = type(new)
    if type(old) is not kind:
        return new
    if kind in _ATOMS:
        # Equal floats may differ by a sign, and equal times by their zone.
        return old if old == new and repr(old) == repr(new) else new
    if kind is list:
        alike = _share_parts(old, new, range(min(len(old), len(new)))) and len(old) == len(new)
    elif kind is dict:
        alike = _share_parts(old, new, [key for key in new if key in old]) and list(old) == list(new)
    elif isinstance(new, BaseModel):
        alike = (
            share_same(vars(old), vars(new)) is vars(old)
            and old.__pydantic_fields_set__ == new.__pydantic_fields_set__
            and old.__pydantic_extra__ == new.__pydantic_extra__
            and old.__pydantic_private__ == new.__pydantic_private__
        )
    else:
        alike = False
    return old if alike else new


def _share_parts(old: Any, new: Any, keys: Iterable[Any]) -> bool:
    """Shares what stands under the same keys or at the same places; returns whether all of that is the same."""
    alike = True
    for key in keys:
        left, right = old[key], new[key]
        if left is right:
            continue
        # Most parts are texts, and a call for each of them would be most of the time.
        if type(right) is str:
            alike = alike and type(left) is str and left == right
        elif share_same(left, right) is left:
            new[key] = left
        else:
            alike = False
    return alike


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
        if _fast.is_on and len(args) == 2 and not kwargs:
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
