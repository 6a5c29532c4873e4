"""Which environments there are, and what each takes: one source for `fate-gym envs` and for the documentation."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym

from fate_gym.arguments import Argument, describe
from fate_gym.benchmark import ENTRY_POINT, Disclosure, benchmark_class, disclosure
from fate_gym.env import ToolEnv


@dataclass(frozen=True, slots=True)
class EnvironmentPage:
    """What is known of an environment before it is made.

    Attributes:
        id: Gymnasium id.
        summary: What its tasks are, in one sentence.
        text: What its benchmark says of itself: paragraphs in Markdown.
        arguments: What its benchmark takes.
        loop_arguments: What the episode loop takes in every environment, with the defaults of this one.
    """

    id: str
    summary: str
    text: str
    arguments: tuple[Argument, ...]
    loop_arguments: tuple[Argument, ...]


def environments() -> dict[str, str]:
    """Returns the ids of the registered environments, of this package and of others, each with its summary.

    No benchmark is imported. The summary is "" where a third party registered none.
    """
    ours = [spec.id for spec in gym.registry.values() if spec.entry_point == ENTRY_POINT]
    return {env_id: (disclosure(env_id) or Disclosure()).summary for env_id in ours}


def environment_page(env_id: str) -> EnvironmentPage:
    """Describes a registered environment, with every argument that `gym.make` takes for it.

    Its benchmark is imported, which may take seconds; its data are not read.

    Raises:
        gymnasium.error.Error: There is no environment of this id.
        ValueError: It is not one of fate-gym.
    """
    benchmark = benchmark_class(env_id)
    own = describe(benchmark, choices=benchmark.choices())
    defaults = {name: value for name, value in gym.spec(env_id).kwargs.items() if name != "benchmark"}
    loop = describe(ToolEnv, defaults=defaults, leave_out=("benchmark",))
    text = "\n\n".join(part for part in (own.summary, own.text) if part)
    return EnvironmentPage(env_id, environments()[env_id] or own.summary, text, own.arguments, loop.arguments)
