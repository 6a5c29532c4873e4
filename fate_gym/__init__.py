"""Gymnasium environments, an evaluation harness and trainers for the safety of tool-using LLM agents.

Importing this package registers its environments and loads nothing heavier than Gymnasium and NumPy.
"""

from pkgutil import extend_path

from fate_gym.benchmark import Benchmark, ToolOutcome, World, register_benchmark
from fate_gym.env import ToolEnv
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES, AxisVerdict, Scalarization, Verdict
from fate_gym.task import DataPolicy, Demonstration, GroundTruth, Task

__all__ = [
    "AXES",
    "AxisVerdict",
    "Benchmark",
    "DataPolicy",
    "Demonstration",
    "FateGymError",
    "GroundTruth",
    "Scalarization",
    "Task",
    "ToolEnv",
    "ToolOutcome",
    "Verdict",
    "World",
    "register_benchmark",
]

__version__ = "0.1.0"

# A process that starts in a checkout finds this folder before the installed package; the packages whose folders stand
# beside this one (agents, trainers, leaderboards, configs) are then found in the installed package.
__path__ = extend_path(__path__, __name__)

register_benchmark("fate/AgentDojo-v0", "fate_gym.benchmarks.agentdojo.benchmark:AgentDojo", model_option="model_name")
register_benchmark(
    "fate/AgentHarm-v0",
    "fate_gym.benchmarks.agentharm.benchmark:AgentHarm",
    max_messages=20,
    confidential=True,
    path_options=["data_dir"],
)
register_benchmark(
    "fate/ATBench-v0", "fate_gym.benchmarks.atbench.benchmark:ATBench", max_turns=30, path_options=["data_dir"]
)
