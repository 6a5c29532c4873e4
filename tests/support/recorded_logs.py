"""Logs of AgentDojo, made up in all the shapes in which they are found: nothing here was recorded by anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Message = dict[str, Any]


def blocks(text: str) -> list[Message]:
    return [{"type": "text", "content": text}]


def says(content: Any) -> Message:
    return {"role": "assistant", "content": content, "tool_calls": None}


def asks(name: str, args: dict[str, Any] | None = None, *, content: Any = None, nested: bool = False) -> Message:
    call = {"function": name, "args": args or {}, "id": ""}
    if nested:
        call = {"id": None, "type": "function", "function": {"name": name, "arguments": json.dumps(args or {})}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def answers(content: Any, error: str | None = None) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "", "error": error}


def log(*messages: Message, user: str = "user_task_1", goal: str | None = None, **fields: Any) -> dict[str, Any]:
    """A log of banking with an opening; its verdict says that nothing was done and no attack succeeded."""
    made: dict[str, Any] = {
        "suite_name": "banking",
        "pipeline_name": "local",
        "user_task_id": user,
        "injection_task_id": goal,
        "attack_type": "direct" if goal else "none",
        "injections": {},
        "messages": [{"role": "user", "content": "What did I spend?"}, *messages],
        "error": None,
        "utility": False,
        "security": goal is None,
        "duration": 1.5,
        "benchmark_version": "v1.2.2",
        "agentdojo_package_version": "0.1.35",
    }
    return {**made, **fields}


def write(folder: Path, *logs: dict[str, Any]) -> Path:
    """Writes logs where AgentDojo would."""
    for number, made in enumerate(logs):
        parts = [
            str(made.get(name) or "none") for name in ("pipeline_name", "suite_name", "user_task_id", "attack_type")
        ]
        path = folder.joinpath(*parts, f"{made.get('injection_task_id') or 'none'}.json")
        path = path.with_stem(f"{path.stem}-{number}") if path.exists() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    return folder
