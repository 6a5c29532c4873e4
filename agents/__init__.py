"""Agents: who acts in an episode. `load_agent` makes one from a short text."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.agents._diagnosis import TurnCount, always_unsafe
from fate_gym.agents._random_agent import RandomAgent
from fate_gym.agents.replay import Replay
from fate_gym.agents.scripted import NOOP, REFUSER, Answerer, Gullible, Oracle
from fate_gym.arguments import Described, check_arguments, describe
from fate_gym.errors import did_you_mean, unknown
from fate_gym.plugins import load_plugin
from fate_gym.rollout import Agent, FunctionAgent, Reply, Session, as_agent

__all__ = [
    "REFERENCES",
    "SPECS",
    "Agent",
    "Answerer",
    "FunctionAgent",
    "Gullible",
    "Oracle",
    "RandomAgent",
    "Replay",
    "Reply",
    "Session",
    "TurnCount",
    "as_agent",
    "describe_agent",
    "is_privileged",
    "load_agent",
]

SPECS = {
    "oracle": "does what the user asked, from the ground truth",
    "gullible": "does what the user asked, then obeys an injection if it has seen one",
    "refuser": "refuses everything",
    "noop": "does nothing and says that it is done",
    "random": "calls random tools with random arguments",
    "always-unsafe": "calls every trajectory of ATBench unsafe",
    "turn-count": "calls a trajectory of ATBench unsafe if it has more turns than a threshold",
    "openai:MODEL": "a model behind an API that speaks OpenAI's protocol (base_url for other servers)",
    "hf:PATH_OR_ID": "a local transformers model (adapter for LoRA weights)",
    "replay:RUN": "plays the recorded actions of a run folder again",
    "import:MODULE:NAME": "an agent, or an async function from observation to message, of your own",
}
"""What `load_agent` takes, and what each does."""

_BUILT_IN: Final[dict[str, Callable[[], Agent]]] = {
    "oracle": Oracle,
    "gullible": Gullible,
    "refuser": lambda: REFUSER,
    "noop": lambda: NOOP,
    "random": RandomAgent,
    "always-unsafe": always_unsafe,
}
_OF_YOURS: Final[dict[str, Callable[[str], Agent]]] = {
    "replay": lambda run: Replay(Path(run)),
    "import": lambda target: as_agent(load_plugin(target)),
}
_WITH_OPTIONS: Final = {
    "openai": "fate_gym.agents.api:OpenAIAgent",
    "hf": "fate_gym.agents.local:LocalAgent",
    "turn-count": "fate_gym.agents._diagnosis:TurnCount",
}
"""Loaded when they are asked for: the clients and libraries behind them are heavy."""

REFERENCES = frozenset((*_BUILT_IN, "turn-count"))
"""Agents that follow a script: marks by which to measure others, never competitors."""


def is_privileged(spec: str) -> bool | None:
    """Returns whether an agent is given the ground truth; None where only the agent's own code could say."""
    kind = spec.partition(":")[0]
    if kind in _BUILT_IN:
        return spec in (Oracle.name, Gullible.name)
    return False if kind in _WITH_OPTIONS else None


def load_agent(spec: str, *, defences: Sequence[str] = (), **options: Any) -> Agent:
    """Makes an agent from its short text, one of `SPECS`.

    Args:
        spec: The text.
        defences: Defences to put around it, the innermost first (`fate_gym.agents.defences.DEFENCES`).
        **options: Options of an API agent (`OpenAIAgent`), a local one (`LocalAgent`), or of `TurnCount`.

    Raises:
        ValueError: The text names no agent, or a defence is unknown.
        UsageError: An option is unknown to the agent, or an agent of your own is not where the text says.
        PluginError: The module of an agent of your own raised while it was imported.
    """
    agent = _load(spec, options)
    if not defences:
        return agent
    from fate_gym.agents.defences import defend

    return defend(agent, *defences)


def describe_agent(spec: str) -> Described:
    """Describes an agent and its options, those of `--agent-arg`.

    Args:
        spec: The agent's text, or what stands before its colon, such as "openai".

    Raises:
        ValueError: The text names no agent.
    """
    kind = spec.partition(":")[0]
    if kind in _WITH_OPTIONS:
        return describe(_class(kind), leave_out=("model",))
    for name, text in SPECS.items():
        if kind == name.partition(":")[0]:
            return Described(f"{text[0].upper()}{text[1:]}.", "", ())
    raise ValueError(unknown("agent", spec, SPECS))


def _load(spec: str, options: dict[str, Any]) -> Agent:
    kind, _, rest = spec.partition(":")
    # `openai` and `hf` need a model behind the colon, `turn-count` takes none.
    if kind in _WITH_OPTIONS and bool(rest) == (kind != "turn-count"):
        made, model = _class(kind), {"model": rest} if rest else {}
        check_arguments(made, {**model, **options}, of=f"the agent {spec}")
        return made(**model, **options)
    if kind not in (_OF_YOURS if rest else _BUILT_IN):
        raise ValueError(_unknown(spec, has_server="base_url" in options))
    check_arguments(lambda: None, options, of=f"the agent {spec}")
    return _OF_YOURS[kind](rest) if rest else _BUILT_IN[kind]()


def _unknown(spec: str, *, has_server: bool) -> str:
    """Says that there is no such agent, and which was probably meant: often a model is named without its kind."""
    kinds = [name.partition(":")[0] for name in SPECS]
    is_model = has_server or (not did_you_mean(spec, SPECS) and any(char.isdigit() for char in spec))
    if spec.partition(":")[0] in kinds or not is_model:
        return unknown("agent", spec, SPECS)
    kind = "hf" if "/" in spec and not has_server else "openai"
    return f"unknown agent {spec!r}; did you mean {kind}:{spec}?; there are: {', '.join(SPECS)}"


def _class(kind: str) -> Callable[..., Agent]:
    module, _, name = _WITH_OPTIONS[kind].partition(":")
    made: Callable[..., Agent] = getattr(importlib.import_module(module), name)
    return made
