from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.markup import holds_call_markup, without_thoughts


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("It is done.", "It is done."),
        ("  spaces stay  ", "  spaces stay  "),
        ("<think>Which one?</think>\n\nThe first.", "The first."),
        ("Which one?\n</think>\nThe first.", "The first."),
        ("<think>Which one? The fi", ""),
        ("The first. <think>Or was it", "The first."),
        ("<THINK>a</THINK>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("[THINK]a", ""),
        ("◁think▷a◁/think▷b", "b"),
        ("<think>I write <think> twice</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "b\nd"),
        ("a</think>b</think>c", "c"),
        ("<think>[/THINK] is another model's</think>b", "b"),
        ("<think></think>", ""),
        ("</think>", ""),
    ],
)
def test_thoughts_are_left_out(text: str, visible: str) -> None:
    assert without_thoughts(text) == visible


@given(text=st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "a", " b\n"]), max_size=12))
def test_no_tag_is_left_and_twice_is_once(text: list[str]) -> None:
    visible = without_thoughts("".join(text))
    assert "think>" not in visible
    assert "THINK]" not in visible
    assert without_thoughts(visible) == visible


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>',
        "<tool_call>look\n<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>",
        "<tool_call><function=look></function></tool_call>",
        'I look. <function=look>{"a": 1}</function>',
        '[TOOL_CALLS][{"name": "look", "arguments": {}}]',
        '[TOOL_CALLS]look{"a": 1}',
        '<|python_tag|>{"name": "look", "parameters": {}}',
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0",
        '<|tool_call|>[{"name": "look", "arguments": {}}]',
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>look",
        '<\uff5cDSML\uff5cfunction_calls><\uff5cDSML\uff5cinvoke name="look">',
        '<minimax:tool_call>\n<invoke name="look">\n</invoke>\n</minimax:tool_call>',
        '<function_calls>\nlook(a="b")\n</function_calls>',
        '{"name": "look", "parameters": {"a": 1}}',
        ' [{"type": "function", "name": "look", "arguments": {}}]\n',
    ],
)
def test_calls_in_the_text_are_seen(text: str) -> None:
    assert holds_call_markup(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I called a tool and it is done.",
        "The <tool_call> tag marks a call.",
        'Write `<tool_call>{"name": "look"}</tool_call>` to call it.',
        '```xml\n<tool_call>{"name": "look", "arguments": {}}</tool_call>\n```',
        "A < b, [TOOL_CALLS] is a token.",
        '{"name": "Ann", "age": 3}',
        '{"name": "Ann"}',
        "[1, 2]",
        '{"name": "look", "arguments": {}} is how a call looks.',
        "int f(int a) { return a; }",
    ],
)
def test_prose_and_code_are_no_calls(text: str) -> None:
    assert not holds_call_markup(text)


@pytest.mark.parametrize("text", ["[TOOL_CALLS]" + " " * 1_000_000 + "x", "<tool_call>" + " " * 1_000_000, "<think>" * 100_000, "`<|python_tag|>\n" * 100_000])  # fmt: skip  # noqa: E501
def test_a_long_text_is_read_in_a_time_that_grows_with_its_length(text: str) -> None:
    started = time.process_time()
    holds_call_markup(without_thoughts(text))
    assert time.process_time() - started < 5
