"""AgentDojo's suites and attacks load without the SDKs of model vendors, and its agents are still there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

VENDORS = ("openai", "anthropic", "cohere", "google.genai", "vertexai")

EPISODE = """
import gymnasium, fate_gym
env = gymnasium.make("fate/AgentDojo-v0", suite="banking", attack="important_instructions")
env.reset(seed=0)
env.step({"role": "assistant", "tool_calls": [{"function": {"name": "get_iban", "arguments": "{}"}}]})
assert env.step("done")[2]
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_an_episode_loads_no_sdk() -> None:
    loaded = json.loads(run(EPISODE + "import json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert "agentdojo.task_suite.task_suite" in loaded
    assert not [name for name in VENDORS if name in loaded]


@pytest.mark.parametrize("first", [pytest.param("", marks=pytest.mark.slow), EPISODE])
def test_agentdojos_agents_are_there_for_whoever_asks(first: str) -> None:
    code = """
import fate_gym.benchmarks.agentdojo.benchmark
from fate_gym.benchmarks.agentdojo._lazy_agents import EMPTY_FUNCTION_NAME
from agentdojo.agent_pipeline import AgentPipeline, BasePipelineElement, GroundTruthPipeline, InitQuery
from agentdojo.agent_pipeline.agent_pipeline import load_system_message
from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline as same
from agentdojo.agent_pipeline.llms import google_llm
assert GroundTruthPipeline is same and issubclass(AgentPipeline, BasePipelineElement)
assert issubclass(google_llm.GoogleLLM, BasePipelineElement)
assert google_llm.EMPTY_FUNCTION_NAME == EMPTY_FUNCTION_NAME
assert fate_gym.benchmarks.agentdojo.benchmark._system_message() == load_system_message(None)
try:
    google_llm.no_such_name
except AttributeError:
    print("all there")
"""
    assert run(first + code).strip() == "all there"


@pytest.mark.slow
def test_a_package_that_has_run_already_is_left_as_it_is() -> None:
    code = """
import agentdojo.agent_pipeline as agents
import fate_gym.benchmarks.agentdojo.benchmark
import sys
print(sys.modules["agentdojo.agent_pipeline"] is agents, type(agents).__name__)
"""
    assert run(code).split() == ["True", "module"]
