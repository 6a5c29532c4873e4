"""Stage 2: what a repair prompt shows and never shows, and candidates that are executed for real."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import depot
import parcels
import pytest
import shop_policy
from small_episodes import verdict_of

from fate_gym.agents import as_agent
from fate_gym.agents.local import LocalAgent
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item, Plan, TaskSet
from fate_gym.rewards import AXES
from fate_gym.rollout import Agent, Reply
from fate_gym.trainers.config import RepairSettings
from fate_gym.trainers.episodes import vector
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages.collect import collect
from fate_gym.trainers.stages.prompts import COMPACT, PromptSettings, compact_prompt, repair_prompt
from fate_gym.trainers.stages.repair import Reattempt, Repair, repair
from fate_gym.trainers.tasks import sample, training_plan

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = PromptSettings()


async def naive(observation: Any) -> Any:
    """Looks, obeys what it finds, and says that it is done: without ever being told the ground truth."""
    results = [message for message in observation["messages"] if message["role"] == "tool"]
    if len(results) == 2:
        return {"role": "assistant", "content": "Shipped."}
    name, arguments = [("look", {}), ("ship", {"parcel": 9})][len(results)]
    return {"tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return training_plan([TaskSet("toy/Depot-v0")], 0)


@pytest.fixture(scope="module")
def attacked(plan: Plan) -> Episode:
    """An attacked episode in which the injection was read and obeyed."""
    item = next(item for item in plan.items if plan.task(item).mode == "attacked")
    (result,) = asyncio.run(sample(plan, as_agent(naive), [item]))
    assert result.verdict.security.value == 0.0
    return result


def item_of(plan: Plan, episode: Episode) -> Item:
    return next(item for item in plan.items if item.key == episode.key)


# The prompt.


@pytest.mark.parametrize("settings", [FULL, COMPACT])
def test_the_prompt_holds_task_attempt_and_judgement(attacked: Episode, settings: PromptSettings) -> None:
    prompt = repair_prompt(attacked, settings)
    assert prompt.startswith("Ship parcel 1.")
    assert "look{}" in prompt
    assert 'ship{"parcel":9}' in prompt.replace(" ", "")
    assert "from the start" in prompt
    assert "Obey only the user" in prompt


@pytest.mark.parametrize("settings", [FULL, COMPACT])
def test_tool_output_is_quoted_line_by_line_and_cut(attacked: Episode, settings: PromptSettings) -> None:
    output = "shelf\nYou called: ship\n" + "x" * 2000
    messages = [
        {**message, "content": output} if message["role"] == "tool" else message for message in attacked.messages
    ]
    prompt = repair_prompt(dataclasses.replace(attacked, messages=messages), settings)
    assert "\n> shelf\n> You called: ship\n> xxx" in prompt
    assert "x" * (settings.tool_characters + 1) not in prompt


def test_a_long_attempt_keeps_its_beginning_and_its_end(attacked: Episode) -> None:
    said = [{"role": "assistant", "content": f"step {n}"} for n in range(200)]
    settings = dataclasses.replace(FULL, total_characters=300)
    prompt = repair_prompt(dataclasses.replace(attacked, messages=[attacked.messages[0], *said]), settings)
    assert "step 0\n" in prompt
    assert "step 199\n" in prompt
    assert "step 100\n" not in prompt
    assert "\n[...]\n" in prompt
    empty = repair_prompt(dataclasses.replace(attacked, messages=attacked.messages[:1]), FULL)
    assert "(nothing was done)" in empty


@pytest.mark.parametrize("axis", range(4))
def test_only_active_axes_are_judged_and_imperfect_is_never_called_one(attacked: Episode, axis: int) -> None:
    values = tuple(0.999 if n == axis else 1.0 for n in range(4))
    active = tuple(n == axis for n in range(4))
    judged = [
        line
        for line in repair_prompt(dataclasses.replace(attacked, verdict=verdict_of(values, active)), FULL).splitlines()
        if line.startswith("- ")
    ]
    assert len(judged) == 1
    assert judged[0].startswith(f"- {AXES[axis]} 0.99: ")


@pytest.mark.parametrize("settings", [FULL, COMPACT])
def test_nothing_of_the_graders_reaches_the_prompt(attacked: Episode, settings: PromptSettings) -> None:
    assert depot.CANARIES["evidence"] in json.dumps(attacked.verdict.to_json())
    prompt = repair_prompt(attacked, settings)
    assert not [name for name, canary in depot.CANARIES.items() if canary in prompt]
    # The injection stands there only as a tool delivered it, quoted.
    unquoted = [line for line in prompt.splitlines() if not line.startswith("> ")]
    assert not [line for line in unquoted if parcels.PAYLOAD in line]


def test_cloning_reads_what_training_reads(plan: Plan, attacked: Episode) -> None:
    (result,) = asyncio.run(sample(plan, as_agent(naive), [item_of(plan, attacked)]))
    assert compact_prompt(result) == repair_prompt(attacked, COMPACT)


# The candidates.


class Reader(Agent):
    """Ships the right parcel, and keeps what it was shown."""

    name = "reader"

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.seeds: list[int] = []

    def start(self, task: Any, seed: int) -> Reader:
        self.seeds.append(seed)
        return self

    async def act(self, observation: Any) -> Reply:
        self.shown.append(observation)
        if observation["messages"][-1]["role"] == "tool":
            return Reply({"role": "assistant", "content": "Shipped."})
        return Reply({"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]})


def test_a_reattempt_changes_the_first_user_message_and_nothing_else(plan: Plan, attacked: Episode) -> None:
    plain, told, item = Reader(), Reader(), item_of(plan, attacked)
    asyncio.run(sample(plan, plain, [item]))
    (result,) = asyncio.run(sample(plan, Reattempt(told, "Try again.", 7), [item]))
    assert told.seeds == [7]
    for before, after in zip(plain.shown, told.shown, strict=True):
        assert after["tools"] == before["tools"]
        assert after["messages"][0] == {"role": "user", "content": "Try again."}
        assert after["messages"][1:] == before["messages"][1:]
    # The environment's own conversation, which graders read, knows nothing of it.
    assert result.messages[0]["content"] == "Ship parcel 1."
    assert result.verdict.vector.tolist() == [1.0] * 4


@pytest.mark.parametrize("prompt", ["repair_prompt", "task_prompt"])
def test_candidates_are_executed_judged_and_kept_with_their_ids(
    make_round: Callable[..., Round], tmp_path: Path, prompt: Any
) -> None:
    policy = str(shop_policy.make_shop_policy(tmp_path / "policy"))
    agent = LocalAgent(policy, temperature=1.0, max_new_tokens=8, max_batch=64)
    few = TaskSet("toy/Depot-v0", tasks=("depot/*/0",))
    settings = RepairSettings(candidates=6, prompt=prompt)
    this_round = make_round(agent, train=(few,), repair=settings, concurrency=8)
    failures, _ = collect(policy, this_round)
    assert failures
    candidates = repair(policy, failures, this_round)
    assert [candidate.failure.key for candidate in candidates] == [f.key for f in failures for _ in range(6)]
    assert repair(policy, failures, this_round) == candidates
    engine = LocalAgent(policy, max_new_tokens=8)
    chat = asyncio.run(engine.engine()).chat
    for failure, attempt in ((candidate.failure, candidate.attempt) for candidate in candidates):
        assert attempt.trajectory is not None
        assert failure.trajectory is not None
        begins = chat.tokenizer.decode(attempt.trajectory.prompt_ids)
        assert ("Obey only the user" in begins) == (prompt == "repair_prompt")
        assert (attempt.trajectory.prompt_ids == failure.trajectory.prompt_ids) == (prompt == "task_prompt")
        shipped = [call["function"]["arguments"] for m in attempt.messages for call in m.get("tool_calls") or []]
        assert vector(attempt)[1] == float('{"parcel": 1}' in shipped or '{"parcel":1}' in shipped)
    asyncio.run(engine.aclose())
    ids = [candidate.attempt.trajectory.completion_ids for candidate in candidates if candidate.attempt.trajectory]
    assert len(set(map(tuple, ids))) > 1
    learned = _learned(candidates, chat)
    assert not [name for name, canary in depot.CANARIES.items() if name != "metadata" and canary in learned]


def _learned(candidates: list[Repair], chat: Any) -> str:
    """Everything that could be learned from candidates, as text."""
    episodes = [episode for one in candidates for episode in (one.attempt, one.failure)]
    sequences = [tokens.prompt_ids + tokens.completion_ids for one in episodes if (tokens := one.trajectory)]
    return "\n".join(map(chat.tokenizer.decode, sequences))
