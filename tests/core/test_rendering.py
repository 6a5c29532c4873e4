from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fate_gym.rendering import render_episode, visible


def test_escapes_are_named() -> None:
    assert visible("a\x1b[31m\u202eb\x9b") == "a\\x1b[31m\\u202eb\\x9b"


@given(st.text())
def test_what_is_not_seen_is_named(text: str) -> None:
    hidden = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}
    assert not hidden & set(visible(text))


@given(st.text(st.characters(categories=("Lu", "Ll", "Lt", "Nd", "P", "Sc", "Zs"), include_characters="\n\t")))
def test_what_is_seen_stays(text: str) -> None:
    assert visible(text) == text


def test_every_part_of_an_episode_is_cleaned() -> None:
    evil = "\x1b]8;;evil\x07"
    call = {"id": "c", "type": "function", "function": {"name": "x", "arguments": '{"k\\u001b": "\\u001b"}'}}
    messages = [
        {"role": "user", "content": evil},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": evil},
    ]
    axis = {"value": 1.0, "active": True, "rule": evil, "evidence": [evil], "error": evil}
    axes = dict.fromkeys(("security", "utility", "over_refusal_control", "validity"), axis)
    assert "\x1b" not in render_episode(messages, evil, axes)
