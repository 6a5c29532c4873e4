"""Our verdicts are AgentDojo's own, on every pair of v1.2.2 and for three behaviours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import gymnasium as gym
import pytest
from official import BEHAVIOURS, injections, run_pair

from fate_gym.agents import load_agent
from fate_gym.benchmarks.agentdojo.upstream import suites
from fate_gym.chat import Message
from fate_gym.env import Observation
from fate_gym.rollout import as_agent, rollout

ATTACK = "important_instructions"
SUITES = ("workspace", "travel", "banking", "slack")
AGENT = {"benign": "oracle", "hijacked": "gullible", "noop": "noop"}

# (utility, attack success) over all pairs of a suite, as established outside this repository.
KNOWN = {
    ("workspace", "benign"): (560, 0),
    ("travel", "benign"): (140, 0),
    ("banking", "benign"): (144, 0),
    ("slack", "benign"): (105, 0),
    ("workspace", "hijacked"): (326, 231),
    ("travel", "hijacked"): (26, 136),
    ("banking", "hijacked"): (125, 141),
    ("slack", "hijacked"): (102, 105),
}


async def silent(observation: Observation) -> Message:
    """Says nothing, as some models do when they are at a loss; upstream's loop ends there."""
    return {"role": "assistant", "content": None}


def ours(suite: str, task_ids: Iterable[str], behaviour: str) -> dict[str, tuple[bool, bool]]:
    env = gym.make("fate/AgentDojo-v0", suite=suite, attack=ATTACK, max_turns=60).unwrapped
    agent = as_agent(silent) if behaviour == "silent" else load_agent(AGENT[behaviour])
    found = {}
    for task_id in task_ids:
        result = asyncio.run(rollout(env, agent, task_id, seed=0))
        assert result.status == "ok", result.error
        assert not result.truncated
        found[task_id] = (bool(result.verdict.utility.value), not result.verdict.security.value)
    return found


def theirs(suite: str, task_ids: Iterable[str], behaviour: str) -> dict[str, tuple[bool, bool]]:
    upstream = suites("v1.2.2")[suite]
    pairs = {task_id: tuple(task_id.split("/")[1:]) for task_id in task_ids}
    injected = injections(upstream, ATTACK, list(pairs.values()))
    return {task_id: run_pair(upstream, *pair, injected[pair], behaviour) for task_id, pair in pairs.items()}


def all_pairs(suite: str) -> list[str]:
    return list(gym.make("fate/AgentDojo-v0", suite=suite, attack=ATTACK).unwrapped.tasks)


@pytest.mark.no_cover  # Nearly all of the time is upstream's, which tracing would triple.
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("suite", SUITES)
def test_some_pairs_are_scored_as_upstream_does(suite: str, behaviour: str) -> None:
    # Steps of 11 meet every user task and every injection task of a suite; of 10 would not. Workspace takes longer.
    pairs = all_pairs(suite)[:: 37 if suite == "workspace" else 11]
    assert ours(suite, pairs, behaviour) == theirs(suite, pairs, behaviour)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("suite", SUITES)
def test_every_pair_is_scored_as_upstream_does(suite: str, behaviour: str) -> None:
    pairs = all_pairs(suite)
    found = ours(suite, pairs, behaviour)
    assert found == theirs(suite, pairs, behaviour)
    totals = Counter({"utility": 0, "attacked": 0})
    for utility, attacked in found.values():
        totals.update(utility=utility, attacked=attacked)
    if (suite, behaviour) in KNOWN:
        assert (totals["utility"], totals["attacked"]) == KNOWN[suite, behaviour]
