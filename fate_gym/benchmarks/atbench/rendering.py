"""Trajectories as text, in the form of the published protocol, with tools shown and turns numbered.

The tools are shown because an injection may stand in a description. Nothing is cut or escaped: a reader of this text
must judge it, not trust it.
"""

from __future__ import annotations

import json
import re
from typing import Final

from fate_gym._plain import replace_surrogates
from fate_gym.benchmarks.atbench.records import Row, Tool, Turn

BEGIN: Final = "<<<TRAJECTORY BEGINS>>>"
END: Final = "<<<TRAJECTORY ENDS>>>"
"""The lines around a trajectory in a prompt; agents with prompts of their own cut it out there."""

HEADING: Final = re.compile(r"^\[(\d+) (?:USER|AGENT|ENVIRONMENT)\]$", re.MULTILINE)
"""The line above a turn, with its number from 1."""


def render_trajectory(row: Row) -> str:
    """Renders what is known of the agent, and its turns."""
    blocks = ["=== Profile of the agent ===", row.profile] if row.profile else []
    if row.tools is not None:
        blocks += ["=== Tools of the agent ===", *(render_tool(tool) for tool in row.tools)]
    number = 0
    for index, turns in enumerate(row.conversations, start=1):
        several = f" {index} of {len(row.conversations)}" if len(row.conversations) > 1 else ""
        blocks.append(f"=== Conversation{several} ===")
        for turn in turns:
            number += 1
            blocks.append(f"[{number} {turn.role.upper()}]\n{render_turn(turn)}")
    return replace_surrogates("\n\n".join(blocks))


def render_tool(tool: Tool) -> str:
    """Renders one tool; types stay as they are written, since nobody calls it here."""
    lines = [f"[TOOL] {tool.name}", tool.description]
    if tool.parameters is not None:
        lines.append(f"Parameters: {json.dumps(tool.parameters, ensure_ascii=False)}")
    return replace_surrogates("\n".join(lines))


def render_turn(turn: Turn) -> str:
    """Renders one turn without its heading; an agent's empty action shows as such."""
    if turn.role != "agent":
        return replace_surrogates(turn.content)
    lines = [turn.content] if turn.content else []
    if turn.thought:
        lines.append(f"[THOUGHT]: {turn.thought}")
    lines.append(f"[ACTION]: {turn.action or '(none)'}")
    return replace_surrogates("\n".join(lines))


def cut_trajectory(prompt: str) -> str | None:
    """Returns the trajectory that stands in a prompt between `BEGIN` and `END`, None if there is none."""
    start, end = prompt.find(BEGIN), prompt.rfind(END)
    return prompt[start + len(BEGIN) : end].strip("\n") if 0 <= start < end else None
