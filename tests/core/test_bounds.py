"""What an episode may hold: a model can fill its record, and nothing more."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import pytest

import fate_gym
from fate_gym import transcript
from fate_gym.actions import MOST_CALLS, TOO_LONG, read_action
from fate_gym.storage import dump

SIZE = 60_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "MAX_SIZE", SIZE)


def workspace() -> fate_gym.ToolEnv:
    env = gym.make("fate/AgentDojo-v0", suite="workspace").unwrapped
    assert isinstance(env, fate_gym.ToolEnv)
    env.reset(seed=0, options={"task_id": "workspace/user_task_0/none"})
    return env


def calls(*wanted: tuple[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"name": name, "arguments": json.dumps(given)}} for name, given in wanted]}


def play(actions: list[Any]) -> fate_gym.ToolEnv:
    """Plays actions until the episode ends, then says so if it has not."""
    env = workspace()
    for action in [*actions, "Done."]:
        if env.transcript.ended is None:
            env.step(action)
    return env


def stored(env: fate_gym.ToolEnv) -> int:
    held = env.transcript
    return len(dump({"actions": held.actions, "messages": held.messages, "calls": [call.name for call in held.calls]}))


LONG = "é" * 3_000
WRITE = calls(("create_file", {"filename": "a", "content": LONG}))
READ = ("search_files_by_filename", {"filename": "a"})


@pytest.mark.parametrize(
    "actions",
    [
        [WRITE, *[calls(*[READ] * 10)] * 20],
        [calls(*[("x" * 2_000, {})] * 3)] * 20,
        [{"content": LONG, "tool_calls": calls(READ)["tool_calls"]}] * 20,
        [{"content": "\U0001f600" * 4_000, "tool_calls": [1] * 100}] * 20,
        ["é" * SIZE],
        [{"content": "x", "reasoning_content": "y" * 2 * SIZE, "tool_calls": calls(READ)["tool_calls"]}] * 20,
        [calls(("create_file", {"filename": "a", "content": '\\"' * SIZE}))] * 20,
    ],
    ids=["read-often", "names", "text", "emoji", "answer", "thoughts", "quotes"],
)
def test_what_an_episode_records_is_bounded_and_plays_again_the_same(actions: list[Any]) -> None:
    env = play(actions)
    held = env.transcript
    assert held.ended is not None
    assert stored(env) < 3 * SIZE
    again = play(json.loads(json.dumps(held.actions))).transcript
    assert again.to_json() == held.to_json()


def test_an_episode_whose_record_is_full_is_truncated_and_scored() -> None:
    env = workspace()
    env.step(WRITE)
    while env.transcript.ended is None:
        _, _, terminated, truncated, info = env.step(calls(*[READ] * 10))
    assert (terminated, truncated, info["status"], info["ended"]) == (False, True, "ok", "max_size")
    assert info["verdict"].validity.value == 0
    assert env.transcript.calls[-1].outcome == "not_run"
    assert len(env.transcript.calls) % 10 == 1
    assert sum("cut here: the record of the episode is full)" in call.content for call in env.transcript.calls) == 1


def test_a_message_without_room_is_invalid_and_the_episode_goes_on() -> None:
    env = workspace()
    _, _, terminated, truncated, _ = env.step("x" * SIZE)
    assert not terminated
    assert not truncated
    assert env.transcript.actions == [TOO_LONG]
    assert env.transcript.bad_turns == [0]
    assert "no room" in env.transcript.messages[-1]["content"]
    assert env.step("Done.")[4]["ended"] == "answer"


def test_a_fork_of_a_full_record_is_as_full() -> None:
    env = workspace()
    env.step(calls(READ))
    other = workspace()
    other.restore(env.snapshot())
    assert other.transcript.size == env.transcript.size > 0


@pytest.mark.parametrize("most", [MOST_CALLS, MOST_CALLS + 1])
def test_a_message_holds_so_many_calls(most: int) -> None:
    turn = read_action({"tool_calls": [{"function": {"name": "look"}}] * most}, 0)
    assert (len(turn.calls), turn.problem is None) == ((most, True) if most == MOST_CALLS else (0, False))
    assert turn.attempted == (most > MOST_CALLS)


def test_the_name_of_a_tool_is_kept_to_a_length_that_no_tool_has() -> None:
    (call,) = read_action({"tool_calls": [{"function": {"name": "n" * 5_000}}]}, 0).calls
    assert call.name == "n" * 256
