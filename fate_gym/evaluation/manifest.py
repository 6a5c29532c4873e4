"""What a run folder records of its evaluation, and the digest of what a resume must agree on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Collection, Mapping
from typing import Any, Final

from fate_gym.benchmark import disclosure
from fate_gym.chat import Json
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.plan import Plan
from fate_gym.evaluation.store import SCHEMA
from fate_gym.rollout import Agent
from fate_gym.storage import digest

_VERSIONS: Final = ("fate-gym", "gymnasium", "numpy", "pydantic")


def make_manifest(config: EvalConfig, plan: Plan, agent: Agent) -> dict[str, Any]:
    """Returns the manifest of a run: settings, versions and checksums; no secrets."""
    settings = config.to_json()
    provenance = [benchmark.provenance() for benchmark in plan.benchmarks]
    policy = plan.benchmarks[0].data_policy
    declared = disclosure(config.env)
    return {
        "schema": SCHEMA,
        "config": settings,
        "digest": run_digest(settings, provenance, declared.path_options if declared else ()),
        "versions": {**{name: importlib.metadata.version(name) for name in _VERSIONS}, "python": _python()},
        "model_name": plan.benchmarks[0].model_name,
        "provenance": provenance,
        "data_policy": policy.note or policy.licence,
        "contaminated_by": list(agent.contaminated_by),
        "privileged": agent.privileged,
    }


def run_digest(settings: Mapping[str, Any], provenance: Json, path_options: Collection[str]) -> str:
    """Returns the digest of what a resume must agree on.

    Scores from other data, or by other graders, are another run's, whereas it changes nothing where the data lie.

    Args:
        settings: `EvalConfig.to_json()`.
        provenance: What each benchmark says of itself.
        path_options: Options of the environment that name a path.
    """
    kept = {name: value for name, value in settings.items() if name not in NOT_IN_DIGEST}
    arguments = {name: value for name, value in settings["env_args"].items() if name not in path_options}
    return digest({**kept, "env_args": arguments, "provenance": provenance})


def _python() -> str:
    return platform.python_version()
