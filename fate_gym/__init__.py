"""Gymnasium environments, an evaluation harness and trainers for the safety of tool-using LLM agents.

Importing this package registers its environments and loads nothing heavier than Gymnasium and NumPy; most names are
loaded when they are first used.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from fate_gym.benchmark import Benchmark, ToolOutcome, World, register_benchmark
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES, AxisVerdict, Scalarization, Verdict
from fate_gym.task import DataPolicy, Demonstration, GroundTruth, Task
from fate_gym.transcript import Transcript

if TYPE_CHECKING:
    from fate_gym.agents import load_agent
    from fate_gym.env import ToolEnv
    from fate_gym.episode import Episode
    from fate_gym.evaluation import EvalConfig, Run, load_run
    from fate_gym.interface import evaluate
    from fate_gym.rollout import Agent, Reply

__all__ = [
    "AXES",
    "Agent",
    "AxisVerdict",
    "Benchmark",
    "DataPolicy",
    "Demonstration",
    "Episode",
    "EvalConfig",
    "FateGymError",
    "GroundTruth",
    "Reply",
    "Run",
    "Scalarization",
    "Task",
    "ToolEnv",
    "ToolOutcome",
    "Transcript",
    "Verdict",
    "World",
    "evaluate",
    "load_agent",
    "load_run",
    "register_benchmark",
]

__version__ = "0.1.0"

# A process that starts in a checkout finds this folder before the installed package; the packages whose folders stand
# beside this one (agents, trainers, leaderboards, configs) are then found in the installed package.
__path__ = extend_path(__path__, __name__)

_LAZY = {
    "Agent": "fate_gym.rollout",
    "Episode": "fate_gym.episode",
    "EvalConfig": "fate_gym.evaluation",
    "Reply": "fate_gym.rollout",
    "Run": "fate_gym.evaluation",
    "ToolEnv": "fate_gym.env",
    "evaluate": "fate_gym.interface",
    "load_agent": "fate_gym.agents",
    "load_run": "fate_gym.evaluation",
}


def __getattr__(name: str) -> Any:
    """Imports what a registration does not need when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_benchmark(
    "fate/AgentDojo-v0",
    "fate_gym.benchmarks.agentdojo.benchmark:AgentDojo",
    model_option="model_name",
    own_name="fate_gym.benchmarks.agentdojo.model_names:is_own_name",
    summary="A user's task with tools, without attack and under prompt injection.",
)
register_benchmark(
    "fate/AgentHarm-v0",
    "fate_gym.benchmarks.agentharm.benchmark:AgentHarm",
    max_messages=20,
    confidential=True,
    path_options=["data_dir"],
    summary="Harmful requests and their harmless twins, with tools.",
)
register_benchmark(
    "fate/ATBench-v0",
    "fate_gym.benchmarks.atbench.benchmark:ATBench",
    max_turns=30,
    path_options=["data_dir"],
    summary="Recorded trajectories of agents, to be called safe or unsafe.",
)
register_benchmark(
    "fate/RJudge-v0",
    "fate_gym.benchmarks.atbench.others:RJudge",
    max_turns=30,
    confidential=True,
    path_options=["data_dir"],
    summary="R-Judge's recorded trajectories, to be called safe or unsafe.",
)
register_benchmark(
    "fate/ASSEBench-v0",
    "fate_gym.benchmarks.atbench.others:ASSEBench",
    max_turns=30,
    path_options=["data_dir"],
    summary="ASSEBench's recorded trajectories, to be called safe or unsafe by a strict or a loose standard.",
)
