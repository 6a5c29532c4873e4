"""Which environments there are, and what each takes: one source for `fate-gym envs` and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from fate_gym.arguments import Argument, check_arguments, describe
from fate_gym.benchmark import ENTRY_POINT, Disclosure, benchmark_class, disclosure
from fate_gym.env import ToolEnv
from fate_gym.errors import FateGymError, PluginError, UsageError, unknown
from fate_gym.plugins import import_plugin


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


def find_environment(env_id: str) -> str:
    """Returns the plain id of a registered environment; "module:ID" imports the module first, which registers it.

    Raises:
        UsageError: There is no such module or environment, or it is not one of fate-gym.
        PluginError: The module raised while it was imported.
    """
    module, colon, plain = env_id.rpartition(":")
    if colon:
        import_plugin(module)
    if plain not in gym.registry:
        raise UsageError(unknown("environment", env_id, environments()))
    if plain not in environments():
        raise UsageError(f"{env_id} is not an environment of fate-gym; `fate-gym envs` lists them")
    return plain


def make_environment(env_id: str, arguments: Mapping[str, Any]) -> ToolEnv:
    """Makes an environment from its id, or from "module:ID", and arguments.

    Raises:
        UsageError, PluginError: As `find_environment`; or an argument is unknown, or the benchmark raised.
        FateGymError: A benchmark may not be used for this purpose, or its data are not at hand.
        ValueError, TypeError: An argument has a value that makes no sense.
    """
    # Not through `gym.make`, which writes its own words around the errors of a constructor.
    kwargs = {**gym.spec(find_environment(env_id)).kwargs, **arguments}
    if "benchmark" in arguments:
        raise UsageError(f"{env_id} is a benchmark already: it has no argument 'benchmark'")
    check_arguments(ToolEnv, kwargs, of=env_id)
    try:
        return ToolEnv(**kwargs)
    except (FateGymError, ValueError, TypeError, OSError):
        raise
    except Exception as error:
        raise PluginError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from error


def environment_page(env_id: str) -> EnvironmentPage:
    """Describes a registered environment, with every argument that `gym.make` takes for it.

    Its benchmark is imported, which may take seconds; its data are not read.

    Raises:
        UsageError, PluginError: As `find_environment`.
    """
    env_id = find_environment(env_id)
    benchmark = benchmark_class(env_id)
    own = describe(benchmark, choices=benchmark.choices())
    defaults = {name: value for name, value in gym.spec(env_id).kwargs.items() if name != "benchmark"}
    loop = describe(ToolEnv, defaults=defaults, leave_out=("benchmark",))
    registered = environments()[env_id]
    text = "\n\n".join(part for part in (registered and own.summary, own.text) if part)
    return EnvironmentPage(env_id, registered or own.summary, text, own.arguments, loop.arguments)
