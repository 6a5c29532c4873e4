"""Attacks as settings name them: a registered one, or payloads of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Attack: TypeAlias = str | Mapping[str, Any] | None
"""A registered attack's name, custom payloads, or none.

Payloads are `{vector: text}`, the same for every task, or `{"name": NAME, "payloads": {task_id: {vector: text}}}`, an
attack on these tasks alone.
"""


def attack_label(attack: Attack) -> str | None:
    """Returns the name of an attack in keys and results; None without an attack."""
    if isinstance(attack, Mapping):
        return f"custom:{attack['name']}" if isinstance(attack.get("payloads"), Mapping) else "custom"
    return attack


def is_attack(value: object) -> bool:
    """Whether a value, of a configuration or a stranger's manifest, has the form of an attack."""
    if not isinstance(value, dict):
        return isinstance(value, str | None)
    if isinstance(value.get("payloads"), dict):
        own = value["payloads"].values()
        return set(value) == {"name", "payloads"} and isinstance(value["name"], str) and all(map(_is_texts, own))
    return _is_texts(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in (*value, *value.values()))
