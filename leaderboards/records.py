"""What an episode's record must look like before anything is computed from it or shown of it.

Run folders come from strangers. A record that is not of this shape is counted as malformed and left out, so that no
other module has to expect a verdict of NaN or a message that is a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Final

from fate_gym.evaluation.metrics import LABELS
from fate_gym.rewards import AXES

_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "key": (str,),
    "task_id": (str,),
    "mode": (str,),
    "suite": (str,),
    "cluster": (str,),
    "attack": (str, NoneType),
    "metadata": (dict,),
    "seed": (int,),
    "repeat": (int,),
    "status": (str,),
    "error": (str, NoneType),
    "ended": (str, NoneType),
    "truncated": (bool,),
    "verdict": (dict,),
    "injections": (dict,),
    "injection_reached": (bool,),
    "messages": (list,),
    "actions": (list,),
    "calls": (list,),
    "usage": (dict,),
    "attempts": (int,),
    "seconds": (dict,),
}
_CALL: Final[dict[str, tuple[type, ...]]] = {"turn": (int,), "id": (str,), "name": (str,), "outcome": (str,)}
_AXIS: Final[dict[str, tuple[type, ...]]] = {"value": (int, float), "active": (bool,), "rule": (str,)}
_MOST: Final = 1e15
"""Bound of every number, so that no sum of them is infinite."""

_SHARES: Final = frozenset(
    ("harm_low", "harm_high", "score_low", "score_high", "refused", "unsafe", "flagged", *LABELS)
)
"""Measures whose means metrics take."""

_ROLES: Final = ("system", "user", "assistant", "tool")


def problem(record: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with an episode's record, None if it has the shape that a run folder gives it.

    Args:
        record: A line of `episodes.jsonl` or `failures.jsonl`.
    """
    found = _wrong(record, _FIELDS, "")
    if found:
        return found
    checks = (
        *(_axis(record["verdict"].get(name), f"verdict.{name}") for name in AXES),
        *(_message(message, f"messages[{i}]") for i, message in enumerate(record["messages"])),
        *(_wrong(call, _CALL, f"calls[{i}].") for i, call in enumerate(record["calls"])),
        *(_spent(record[name], name) for name in ("usage", "seconds")),
        _spent({name: record[name] for name in ("attempts", "repeat", "seed")}, "record"),
        None if sorted(record["seconds"]) == ["agent", "total"] else "seconds must hold total and agent",
        _texts(record["injections"].values(), "injections"),
    )
    return next((check for check in checks if check), None)


def _wrong(value: object, fields: Mapping[str, tuple[type, ...]], prefix: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{prefix.rstrip('.')} is no object"
    for name, kinds in fields.items():
        # type(), since True is an int to isinstance.
        if name not in value:
            return f"{prefix}{name} is missing"
        if type(value[name]) not in kinds:
            return f"{prefix}{name} is {_kind(value[name])}"
    return None


def _axis(axis: Any, where: str) -> str | None:
    found = _wrong(axis, _AXIS, f"{where}.")
    if found:
        return found
    if not 0 <= axis["value"] <= 1:
        return f"{where}.value is outside [0, 1]"
    evidence = axis.get("evidence", [])
    if not isinstance(evidence, list):
        return f"{where}.evidence is no list"
    measures = axis.get("measures", {})
    if not isinstance(measures, Mapping):
        return f"{where}.measures is no object"
    return (
        _texts([*evidence, axis.get("error", "")], f"{where}.evidence")
        or _numbers(measures, f"{where}.measures")
        or next((f"{where}.measures.{name} is outside [0, 1]" for name in _wide(measures)), None)
    )


def _wide(measures: Mapping[str, float]) -> Iterator[str]:
    """Yields the measures outside of [0, 1] whose means metrics take."""
    return (name for name, value in measures.items() if name in _SHARES and not 0 <= value <= 1)


def _message(message: Any, where: str) -> str | None:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        return f"{where} has no known role"
    if not isinstance(message.get("content"), str | NoneType):
        return f"{where}.content is {_kind(message['content'])}"
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        return f"{where}.tool_call_id is {_kind(message.get('tool_call_id'))}"
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list):
        return f"{where}.tool_calls is no list"
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        texts = [call.get("id"), function.get("name"), function.get("arguments")] if isinstance(function, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            return f"{where}.tool_calls holds no readable call"
    return None


def _numbers(values: Mapping[str, Any], where: str) -> str | None:
    for name, value in values.items():
        # Compared first, since an integer may be too large for any function of floats.
        if type(value) not in (int, float) or not -_MOST <= value <= _MOST:
            return f"{where}.{name} must be a number from -1e15 to 1e15"
    return None


def _spent(values: Mapping[str, Any], where: str) -> str | None:
    negative = next((name for name, value in values.items() if type(value) in (int, float) and value < 0), None)
    return _numbers(values, where) if negative is None else f"{where}.{negative} must not be negative"


def _texts(values: Iterable[object], where: str) -> str | None:
    return None if all(isinstance(value, str) for value in values) else f"{where} holds something that is no text"


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
