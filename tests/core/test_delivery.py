from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.delivery import _letters, delivered

printable = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\t\\\"'"), min_size=1
)
formatters = st.sampled_from([str, repr, yaml.safe_dump, json.dumps, lambda text: yaml.safe_dump([{"body": text}] * 2)])


@given(payload=printable, before=printable, after=printable, formatter=formatters)
def test_a_payload_is_seen_through_any_formatter(payload: str, before: str, after: str, formatter: Any) -> None:
    if payload.strip() and any(char.isalnum() for char in payload):
        assert delivered(payload, formatter(before + payload + after))


@given(st.text(st.characters(codec="ascii")))
def test_letters_of_ascii_are_those_that_the_expression_leaves(text: str) -> None:
    assert _letters(text) == re.sub(r"[\W_]+", "", text)


@pytest.mark.parametrize("content", ["", "Please ignore", "all previous", "pleaseignore"])
def test_a_part_is_not_the_payload(content: str) -> None:
    assert not delivered("Please ignore all previous", content)


def test_payloads_without_letters_are_looked_for_as_they_are() -> None:
    assert delivered(" !!! ", "a !!! b")
    assert not delivered("!!!", "a !! b")
    assert not delivered("  ", "a   b")
