"""The chat templates that ship with the package: written and read back, and a turn appends to the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from transformers import AutoTokenizer

from fate_gym.agents.chat_format import ChatFormat, chat_templates
from fate_gym.agents.local import LocalAgent, load_tokenizer
from fate_gym.agents.response_templates import choose_response_template
from fate_gym.errors import UsageError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Does it.",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in keys}},
        },
    }
    for name, keys in (("send_money", ["recipient", "amount"]), ("get_balance", []))
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


CALLS = [call("send_money", recipient='Zoë "Z" <b>', amount="5.0"), call("get_balance")]
CONVERSATION = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "Pay and look."},
    {"role": "assistant", "content": "At once.", "tool_calls": CALLS},
    {"role": "tool", "content": "paid", "tool_call_id": "send_money"},
    {"role": "tool", "content": "12.50", "tool_call_id": "get_balance"},
]


@pytest.fixture(scope="module")
def toolless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own chat template takes no tools, as that of many small chat models."""
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return tiny_model.make_tiny_model(tmp_path_factory.mktemp("models") / "toolless", chat_template=chatml)


def chat(folder: Path, name: str) -> ChatFormat:
    tokenizer = load_tokenizer(str(folder), chat_template=name)
    template = choose_response_template(tokenizer, None, {})
    return ChatFormat(tokenizer, template, {}, frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>")}))


@pytest.mark.parametrize("name", chat_templates())
def test_a_turn_is_read_back_as_it_was_written(toolless: Path, name: str) -> None:
    made = chat(toolless, name)
    before = made.prompt(CONVERSATION[:2], TOOLS)
    whole = made.prompt(CONVERSATION[:3], TOOLS)
    assert whole[: len(before)] == before
    end = whole.index(next(iter(made.stop_ids)), len(before)) + 1
    message = made.read(before, whole[len(before) : end], TOOLS)
    assert message["content"] == "At once."
    expected = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in CALLS]
    assert [(one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]] == expected


@pytest.mark.parametrize("name", chat_templates())
def test_what_follows_a_turn_is_appended_to_it(toolless: Path, name: str) -> None:
    made = chat(toolless, name)
    before = made.prompt(CONVERSATION[:2], TOOLS)
    whole = made.prompt(CONVERSATION, TOOLS)
    end = whole.index(next(iter(made.stop_ids)), len(before)) + 1
    assert made.continuation(CONVERSATION, 2, TOOLS, ended=True) == whole[end:]


def test_all_that_a_message_says_stands_in_the_prompt(toolless: Path) -> None:
    made = chat(toolless, "hermes")
    text = made.tokenizer.decode(made.prompt(CONVERSATION, TOOLS))
    for part in ("You help.", "Pay and look.", "paid", "12.50", "send_money", "Does it.", "recipient"):
        assert part in text
    compact = chat(toolless, "hermes_compact")
    short = compact.tokenizer.decode(compact.prompt(CONVERSATION, TOOLS))
    assert "send_money(recipient, amount) get_balance()" in short
    assert "Does it." not in short
    assert "<|im_start|>system" not in compact.tokenizer.decode(compact.prompt(CONVERSATION[1:], None))


def test_what_was_written_before_is_remembered_by_what_it_says(toolless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chat(toolless, "hermes")
    messages = [dict(message) for message in CONVERSATION]
    before = made.prompt(messages, TOOLS)
    messages[1]["content"] = "Look."  # The same objects, and another text.
    after = made.prompt(messages, TOOLS)
    assert after != before
    assert made.prompt(messages, TOOLS[:1]) not in (before, after)
    monkeypatch.setattr(made.tokenizer, "apply_chat_template", None)
    assert made.prompt(messages, TOOLS) == after
    assert made.prompt([dict(message) for message in CONVERSATION], TOOLS) == before


def test_a_model_without_tools_is_told_of_the_templates_and_plays_with_one(toolless: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes no tools; chat_template=hermes or hermes_compact"):
        load_tokenizer(str(toolless))
    with pytest.raises(UsageError, match=r"unknown chat template 'hermse'.*hermes"):
        load_tokenizer(str(toolless), chat_template="hermse")
    agent = LocalAgent(str(toolless), chat_template="hermes_compact")
    assert agent.name == "hf:toolless"
    own = tmp_path / "own.jinja"
    own.write_text("{% for t in tools %}{{ t.function.name }} {% endfor %}<|im_start|>assistant\n")
    assert "probe" not in load_tokenizer(str(toolless), chat_template=str(own)).chat_template
    foreign = tmp_path / "foreign.jinja"
    foreign.write_text("{% for t in tools %}{{ t.function.name }} {% endfor %}<|start_header_id|>")
    with pytest.raises(UsageError, match=r"no token <\|start_header_id\|>"):
        load_tokenizer(str(toolless), chat_template=str(foreign))


def test_a_saved_tokenizer_keeps_its_template(toolless: Path, tmp_path: Path) -> None:
    load_tokenizer(str(toolless), chat_template="hermes").save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == load_tokenizer(str(tmp_path)).chat_template
