"""How AgentDojo's attacks address the evaluated model; light, so that boards can ask too."""

from __future__ import annotations

import re
from typing import Final

DEFAULT_NAME: Final = "Local model"
"""AgentDojo's own name for whatever it does not know."""

_NAME: Final = re.compile(r"[\w.+:/@()-]+( [\w.+:/@()-]+){0,4}")
"""At most five words, as "AI model developed by Google"."""

_LONGEST: Final = 100

_LOCAL: Final = "local"


def check_name(name: object) -> str:
    """Returns a name, which stands in the middle of injected texts.

    Raises:
        ValueError: It is none: a sentence in its place would change what the attack says.
    """
    if not isinstance(name, str) or len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise ValueError(
            f"model_name must be a name of at most five words and {_LONGEST} characters, got {repr(name)[:_LONGEST]}"
        )
    return name


def known_model(model: str) -> str | None:
    """Returns the id in AgentDojo's table that a model's id contains, by upstream's own rule; None without one."""
    from agentdojo.models import MODEL_NAMES

    return next((known for known in MODEL_NAMES if known in model and known != _LOCAL), None)


def prose_name(model: str) -> str | None:
    """Returns how AgentDojo's attacks address a model, such as "GPT-4"; None for a model that it does not know.

    Args:
        model: The model's id at its provider.
    """
    from agentdojo.models import MODEL_NAMES

    known = known_model(model)
    return None if known is None else str(MODEL_NAMES[known])


def is_own_name(name: str, agent: str) -> bool:
    """Whether a name is the agent's own: AgentDojo's name for its model, or a part of the model's id, however spelt.

    An attack that calls the model by another name is another attack: `important_instructions_wrong_model_name` is one.

    Args:
        name: By which attacks address the agent.
        agent: The agent's text, such as "openai:Qwen/Qwen3-8B".
    """
    kind, _, model = agent.partition(":")
    expected = prose_name(model) if kind in ("openai", "hf") else None
    spelt = _spelt(name)
    return name == (expected or DEFAULT_NAME) or (len(spelt) > 1 and spelt in _spelt(agent))


def _spelt(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
