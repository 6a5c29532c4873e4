"""How an episode looks in a notebook: HTML that takes its colours from the notebook, light or dark.

What agents and tools wrote is hostile: every text is escaped, and made visible first, as for a terminal.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable
from typing import Final

from fate_gym.chat import Message
from fate_gym.locate import locate
from fate_gym.rendering import EpisodeView, readable_arguments, visible
from fate_gym.rewards import AxisVerdict, Verdict

_LONG: Final = 1_500
"""Characters of a message that are shown at once; a longer one is folded, unless injected text stands in it."""

# Text keeps the notebook's own colour, and whatever is added is translucent: so it is legible on any ground.
_STYLE: Final = """
.fate-gym{line-height:1.45;max-width:60em;overflow-wrap:anywhere}
.fate-gym .turn{border-left:4px solid #8888;margin:.5em 0;padding:.1em .8em}
.fate-gym .user{border-color:#3b82f6}.fate-gym .assistant{border-color:#10b981}.fate-gym .tool{border-color:#a78bfa}
.fate-gym .role{font-weight:600}
.fate-gym pre{background:none;color:inherit;font-size:.92em;margin:.2em 0;padding:0;white-space:pre-wrap}
.fate-gym summary{cursor:pointer}
.fate-gym mark{background:#ff8c0048;color:inherit;text-decoration:underline #ff8c00}
.fate-gym table{border-collapse:collapse;margin:.6em 0}
.fate-gym th,.fate-gym td{border:1px solid #8886;padding:.2em .6em;text-align:left;vertical-align:top}
.fate-gym td.value{font-variant-numeric:tabular-nums;text-align:right}
"""


class Html(str):
    """HTML that a notebook draws, and everything else takes for the text that it is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def to_html(view: EpisodeView) -> Html:
    """Draws an episode: the conversation with its injected texts marked, and the verdict once there is one."""
    parts = [f'<div class="fate-gym"><style>{_STYLE}</style>', f"<p><b>{_text(view.title)}</b>"]
    parts += [f"<br>{_text(fact)}" for fact in view.facts]
    parts.append("</p>")
    for vector, payload in view.injections.items():
        state = "reached the agent" if view.reached else "has not reached the agent"
        parts.append(f"<details><summary>injected at {_text(vector)}, {state}</summary><pre>{_text(payload)}</pre>")
        parts.append("</details>")
    parts += [_turn(message, view.injections.values()) for message in view.messages]
    if view.ended is not None:
        parts.append(f"<p>ended: {_text(view.ended)}</p>")
    if view.verdict is not None:
        parts.append(_verdict(view.verdict))
    return Html("".join([*parts, "</div>"]))


def show(view: EpisodeView) -> None:
    """Draws an episode below the cell of a notebook, and prints it anywhere else."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import display

        display(to_html(view))
    else:
        sys.stdout.write(f"{view.to_text()}\n")


def _turn(message: Message, payloads: Iterable[str]) -> str:
    role, content = message["role"], message.get("content") or ""
    label = f"tool · {message['tool_call_id']}" if role == "tool" else role
    spans = sorted({span for payload in payloads for span in locate(payload, content)}) if role == "tool" else []
    body = f"<pre>{_marked(content, spans)}</pre>" if content.strip() else ""
    if len(content) > _LONG and not spans:
        body = f"<details><summary>{len(content):,} characters</summary>{body}</details>"
    calls = "".join(
        f"<pre>→ {_text(call['function']['name'])}({_text(readable_arguments(call['function']['arguments']))})"
        f"  [{_text(call['id'])}]</pre>"
        for call in message.get("tool_calls", ())
    )
    return f'<div class="turn {html.escape(role)}"><div class="role">{_text(label)}</div>{body}{calls}</div>'


def _marked(content: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, done = [], 0
    for start, end in spans:
        if start >= done:
            pieces += [_text(content[done:start]), f'<mark title="injected">{_text(content[start:end])}</mark>']
            done = end
    return "".join([*pieces, _text(content[done:])])


def _verdict(verdict: Verdict) -> str:
    rows = "".join(_axis(name, axis) for name, axis in verdict.axes.items())
    return f"<table><tr><th>axis</th><th>value</th><th>rule and evidence</th></tr>{rows}</table>"


def _axis(name: str, axis: AxisVerdict) -> str:
    value = f"{axis.value:.2f}" if axis.active else "not active"
    reasons = [axis.rule, *axis.evidence, *([axis.error] if axis.error is not None else [])]
    return f'<tr><td>{name}</td><td class="value">{value}</td><td>{"<br>".join(map(_text, reasons))}</td></tr>'


def _text(text: str) -> str:
    return html.escape(visible(text))
