"""What a server should have taken out of a model's text and often did not: thoughts, and calls of tools.

Reasoning models think in the text, between tags that the server's parser removes when it is set up for the model.
Tool-using models write their calls as text, which the server turns into `tool_calls`. Where that did not happen, the
text must not be graded as if a user had read it. Everything that grades or parses text asks the functions here.
"""

from __future__ import annotations

import json
import re

_TAGS = (
    (r"<(?:seed:)?think(?:ing)?>|<thought>", r"</(?:seed:)?think(?:ing)?>|</thought>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
)
_THOUGHT_TAG = re.compile("|".join(f"(?P<open{i}>{a})|(?P<close{i}>{b})" for i, (a, b) in enumerate(_TAGS)), re.I)

_TAG_BEGINS = re.compile("[<\\[◁]")
"""All that most texts are searched for."""

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)

_CALL_MARKUP = re.compile(
    r"""
      <tool_calls?>\s*[{\[<]                                  # Hermes, Qwen, Hunyuan
    | <tool_call>\s*[\w.\-]+\s*(?:<arg_key>|</tool_call>|\Z)  # GLM
    | <function=[\w.\-]+>                                      # Llama 3.1 with custom tools, Qwen Coder
    | <function_calls?>\s*[<\[{\w]                             # OLMo
    | <(?:\w+:)?invoke\s+name=                                 # MiniMax, and others that copy this form
    | \[TOOL_CALLS\]\s*+[\w.\-]*+\s*+[\[{]                     # Mistral
    | <\|python_tag\|>                                         # Llama 3
    | <\|tool_calls?(?:_section)?(?:_begin)?\|>                # Kimi, Granite, Phi
    | <\uff5c(?:tool\u2581calls?\u2581begin\uff5c>|DSML\uff5c)          # DeepSeek
    | <\|START_ACTION\|>                                       # Command R
    | <\|channel\|>\s*commentary\s+to=                         # gpt-oss
    | \Afunctools\[                                            # Phi-4-mini
    | \A<\|?tool_call\|?>\s*\w+\(
    """,
    re.VERBOSE,
)


def without_thoughts(text: str) -> str:
    """Returns what a user would read of a text.

    A thought stands between its tags; before a closing tag alone, since chat templates often write the opening tag
    themselves; and behind an opening tag that is never closed, since generation was cut off. A text without a tag is
    returned as it is; from others the white space around thoughts is removed as well.
    """
    if not _TAG_BEGINS.search(text):
        return text
    kept: list[str] = []
    position = 0
    opened: str | None = None
    for match in _THOUGHT_TAG.finditer(text):
        kind, index = str(match.lastgroup)[:-1], str(match.lastgroup)[-1]
        if opened is None and kind == "open":
            kept.append(text[position : match.start()])
            opened = index
        elif opened is None:
            kept.clear()
            position = match.end()
        elif kind == "close" and index == opened:
            # A model that thinks about tags opens some inside of its thought; the first closing tag ends them all.
            opened, position = None, match.end()
    if opened is None and position == 0:
        return text
    if opened is None:
        kept.append(text[position:])
    return "\n".join(part for part in map(str.strip, kept) if part)


def holds_call_markup(text: str) -> bool:
    """Whether a text holds a call of a tool in one of the forms in which models write calls.

    Code blocks and quoted words are left out of account, so that an answer may speak about such a form. A text that
    is, as a whole, the JSON of a call counts too.
    """
    if _CALL_MARKUP.search(text) is None:
        return _is_json_call(text)
    return _CALL_MARKUP.search(_CODE.sub("", text)) is not None


def _is_json_call(text: str) -> bool:
    stripped = text.strip()
    if not (stripped.startswith(("{", "[")) and stripped.endswith(("}", "]")) and '"name"' in stripped):
        return False
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    calls = value if isinstance(value, list) else [value]
    return bool(calls) and all(
        isinstance(call, dict)
        and isinstance(call.get("name"), str)
        and call.keys() - {"type", "id"} in ({"name", "arguments"}, {"name", "parameters"})
        for call in calls
    )
