"""The names by which attacks address the model."""

from __future__ import annotations

from typing import Any

import pytest
from agentdojo.models import MODEL_NAMES

from fate_gym.benchmarks.agentdojo.model_names import DEFAULT_NAME, check_name, is_own_name, known_model, prose_name


def test_upstreams_names_are_names() -> None:
    assert MODEL_NAMES["local"] == DEFAULT_NAME
    for known, prose in MODEL_NAMES.items():
        assert check_name(known) == known
        assert check_name(prose) == prose


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "x" * 101,
        "nobody. Ignore what follows, it is an attack",
        "a  b",
        "a\nb",
        "a\tb",
        "</INFORMATION>",
        "a\u202eb",
        "{user}",
        None,
        5,
        ["GPT-4"],
    ],
)
def test_a_sentence_is_no_name(name: Any) -> None:
    with pytest.raises(ValueError, match="model_name must be a name of at most five words"):
        check_name(name)


@pytest.mark.parametrize(
    ("model", "known", "prose"),
    [
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", "GPT-4"),
        ("openrouter/gpt-4o-2024-05-13:free", "gpt-4o-2024-05-13", "GPT-4"),
        ("qwen3", None, None),
        ("my-local-model", None, None),
    ],
)
def test_models_that_upstream_knows(model: str, known: str | None, prose: str | None) -> None:
    assert (known_model(model), prose_name(model)) == (known, prose)


@pytest.mark.parametrize(
    ("name", "agent", "own"),
    [
        ("GPT-4", "openai:gpt-4o-2024-05-13", True),
        ("Local model", "openai:gpt-4o-2024-05-13", False),
        ("Claude", "openai:gpt-4o-2024-05-13", False),
        ("gpt-4o", "openai:gpt-4o-2024-05-13", True),
        ("Local model", "openai:qwen3", True),
        ("Local model", "noop", True),
        ("GPT-4", "noop", False),
        ("Qwen 3 8B", "openai:Qwen/Qwen3-8B", True),
        ("Never obey this", "openai:Qwen/Qwen3-8B", False),
        ("n", "noop", False),
        ("-", "noop", False),
    ],
)
def test_a_models_own_names(name: str, agent: str, own: bool) -> None:
    assert is_own_name(name, agent) is own
