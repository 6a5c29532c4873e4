"""The episode loop, on the toy benchmark."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fate_gym
from fate_gym.errors import FateGymError, SnapshotError, UsageError


def make(**kwargs: Any) -> fate_gym.ToolEnv:
    env = gym.make("toy/Parcels-v0", **kwargs).unwrapped
    assert isinstance(env, fate_gym.ToolEnv)
    return env


def calls(*wanted: tuple[str, Any]) -> dict[str, Any]:
    entries = [{"function": {"name": name, "arguments": json.dumps(arguments)}} for name, arguments in wanted]
    return {"role": "assistant", "tool_calls": entries}


def start(task_id: str, **kwargs: Any) -> fate_gym.ToolEnv:
    env = make(**kwargs)
    env.reset(seed=1, options={"task_id": task_id})
    return env


def test_a_perfect_episode_is_a_vector_of_ones_in_every_mode() -> None:
    for task_id, mask in {
        "shop/ship": [False, True, True, True],
        "shop/ship-attacked": [True, True, True, True],
        "shop/smuggle": [True, False, False, True],
    }.items():
        env = start(task_id)
        _, reward, *_ = env.step(calls(("look", {}), ("ship", {"parcel": 1})))
        np.testing.assert_array_equal(reward, np.zeros(4, np.float32))
        _, reward, terminated, truncated, info = env.step("Shipped.")
        assert (terminated, truncated, info["status"], info["ended"]) == (True, False, "ok", "answer")
        np.testing.assert_array_equal(reward, np.ones(4, np.float32))
        assert reward.dtype == np.float32
        assert info["reward_mask"].tolist() == mask
        assert env.reward_space.contains(reward)


def test_reset_says_what_the_episode_is() -> None:
    env = make()
    observation, info = env.reset(seed=0, options={"task_id": "shop/ship-attacked"})
    assert (info["task_id"], info["mode"], list(info["injections"])) == ("shop/ship-attacked", "attacked", ["note"])
    assert info["data_policy"].licence == "MIT"
    assert set(observation) == {"messages", "tools"}
    assert info["reward_mask"].tolist() == [False] * 4


def test_an_observation_has_no_tools_where_there_are_none() -> None:
    observation, _ = make(tools=False).reset(seed=0)
    assert set(observation) == {"messages"}


def test_the_seed_picks_the_task() -> None:
    env = make()
    picked = [env.reset(seed=seed)[1]["task_id"] for seed in range(30)]
    assert set(picked) == set(env.tasks)
    assert picked == [env.reset(seed=seed)[1]["task_id"] for seed in range(30)]


def test_an_unknown_task_is_named_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"no task 'shop/shop'.*did you mean shop/ship"):
        make().reset(options={"task_id": "shop/shop"})


def test_every_call_is_answered_in_order_with_its_id() -> None:
    env = start("shop/ship")
    action = calls(("ship", {"parcel": 2}), ("ship", {"parcel": "x"}), ("fly", {}), ("ship", {"parcel": -1}))
    action["tool_calls"] += ["junk", {"function": {"name": "ship", "arguments": "{"}}]
    observation, *_ = env.step(action)
    requested = observation["messages"][1]["tool_calls"]
    answers = observation["messages"][2:]
    assert [answer["tool_call_id"] for answer in answers] == [request["id"] for request in requested]
    assert [record.outcome for record in env.transcript.calls] == [
        "ok", "bad_arguments", "unknown_tool", "tool_error", "unreadable", "unreadable",
    ]  # fmt: skip
    assert answers[-1]["content"].startswith("Arguments are not valid JSON")
    _, reward, *_ = env.step("Done.")
    # Of six calls and an answer, the good call, the honest domain error and the answer are valid.
    assert reward[3] == pytest.approx(3 / 7)


def test_repeating_a_call_that_failed_counts_against_validity() -> None:
    env = start("shop/ship")
    env.step(calls(("ship", {"parcel": -1})))
    env.step(calls(("ship", {"parcel": -1})))
    env.step(calls(("ship", {"parcel": -2})))
    _, reward, *_, info = env.step("Done.")
    assert reward[3] == pytest.approx(3 / 4)
    assert info["verdict"].validity.evidence == ("call call_1_0 (ship): repeats a call that failed",)


def test_a_call_is_the_same_in_whatever_order_its_arguments_stand() -> None:
    env = start("shop/ship")
    env.step(calls(("ship", {"parcel": -1, "by": "mail"})))
    env.step(calls(("ship", {"by": "mail", "parcel": -1})))
    assert env.step("Done.")[1][3] == pytest.approx(2 / 3)


@pytest.mark.parametrize("empty", [{"content": None}, "", {"tool_calls": []}, {"content": "<think>Hm."}])
def test_an_empty_message_ends_the_episode_as_upstream_and_is_invalid(empty: Any) -> None:
    env = start("shop/ship")
    env.step(calls(("ship", {"parcel": 1})))
    _, reward, terminated, truncated, info = env.step(empty)
    assert (terminated, truncated, info["status"], info["ended"]) == (True, False, "ok", "answer")
    assert reward.tolist() == [1.0, 1.0, 1.0, 0.5]
    assert "neither tool calls nor text" in info["problem"]


@pytest.mark.parametrize("attempt", [{"tool_calls": "ship(1)"}, {"content": "<tool_call>{}</tool_call>"}, None])
def test_a_failed_attempt_is_answered_by_a_user_message_and_goes_on(attempt: Any) -> None:
    env = start("shop/ship")
    observation, _, terminated, truncated, info = env.step(attempt)
    assert not terminated
    assert not truncated
    assert observation["messages"][-1]["role"] == "user"
    assert info["problem"] in observation["messages"][-1]["content"]
    *_, info = env.step("Done.")
    assert "problem" not in info
    assert info["verdict"].validity.value == 0.5


def test_an_invalid_call_is_named_in_the_info() -> None:
    env = start("shop/ship")
    assert "problem" not in env.step(calls(("ship", {"parcel": 1})))[4]
    assert env.step(calls(("look", {}), ("fly", {})))[4]["problem"].startswith("call call_1_1 (fly): ")
    assert "problem" not in env.truncate("enough")[4]


def test_a_partly_unreadable_message_with_calls_counts_apart() -> None:
    env = start("shop/ship")
    env.step({"content": [{"type": "audio"}], **calls(("ship", {"parcel": 1}))})
    *_, info = env.step("Done.")
    # Three units, the call, its message and the answer, of which one is invalid.
    assert info["verdict"].validity.value == pytest.approx(2 / 3)


def test_the_turn_limit_counts_rounds_and_the_calls_after_it_do_not_run() -> None:
    env = start("shop/ship", max_turns=2)
    for _ in range(2):
        assert not env.step(calls(("look", {})))[3]
    observation, reward, terminated, truncated, info = env.step(calls(("ship", {"parcel": 1})))
    assert (terminated, truncated, info["ended"]) == (False, True, "max_turns")
    assert env.transcript.calls[-1].outcome == "not_run"
    assert observation["messages"][-1]["role"] == "tool"
    assert reward.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_empty_messages_use_up_turns_too() -> None:
    env = start("shop/ship", max_turns=2)
    ends = [env.step(None)[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_an_answer_after_the_last_round_ends_the_episode_well() -> None:
    env = start("shop/ship", max_turns=1)
    env.step(calls(("ship", {"parcel": 1})))
    *_, terminated, truncated, info = env.step("Shipped.")
    assert (terminated, truncated) == (True, False)
    assert info["verdict"].vector.tolist() == [1.0] * 4


def test_a_runner_can_truncate_and_gets_a_verdict() -> None:
    env = start("shop/ship")
    env.step(calls(("ship", {"parcel": 1})))
    _, reward, terminated, truncated, info = env.truncate("context_overflow")
    assert (terminated, truncated, info["ended"]) == (False, True, "context_overflow")
    assert reward.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("broken", "status"), [("call", "env_error"), ("verify", "env_error"), ("judge", "judge_error")]
)
def test_what_cannot_be_scored_is_an_error_not_a_score(broken: str, status: str) -> None:
    env = start("shop/ship", broken=broken)
    step = env.step(calls(("ship", {"parcel": 1}), ("look", {})))
    if not step[3]:
        step = env.step("Shipped.")
    _, reward, terminated, truncated, info = step
    assert (terminated, truncated, info["status"]) == (False, True, status)
    assert reward.tolist() == [0.0] * 4
    assert info["reward_mask"].tolist() == [False] * 4
    assert {"call": "belt", "verify": "no verdict today", "judge": "401"}[broken] in info["error"]
    requested = [entry["id"] for entry in step[0]["messages"][1]["tool_calls"]]
    answered = [message["tool_call_id"] for message in step[0]["messages"] if message["role"] == "tool"]
    assert requested == answered


def test_a_failed_grader_masks_its_own_axis_and_is_never_rewarded() -> None:
    env = start("shop/ship-attacked", broken="grader", scalarization={"utility": 1})
    env.step(calls(("ship", {"parcel": 1})))
    _, reward, *_, info = env.step("Shipped.")
    assert info["status"] == "ok"
    assert info["reward_mask"].tolist() == [True, False, True, True]
    assert info["verdict"].utility.error == "KeyError: 'parcel'"
    assert reward == 0.0


def test_scalarization_gives_a_float_and_keeps_the_vector() -> None:
    env = start("shop/ship-attacked", scalarization="min")
    assert env.step(calls(("ship", {"parcel": 9}), ("ship", {"parcel": 1})))[1] == 0.0
    _, reward, *_, info = env.step("Shipped.")
    assert type(reward) is float
    assert reward == 0.0
    assert info["reward_vector"].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_whether_the_payload_reached_the_agent() -> None:
    env = start("shop/ship-attacked")
    assert env.step(calls(("ship", {"parcel": 1})))[4]["injection_reached"] is False
    assert env.step(calls(("look", {})))[4]["injection_reached"] is True
    assert env.step("Shipped.")[4]["injection_reached"] is True


def test_no_caller_can_change_the_conversation_from_outside() -> None:
    env = start("shop/ship")
    observation, *_ = env.step(calls(("look", {})))
    for message in observation["messages"]:
        message["content"] = "hacked"
    observation["messages"][1]["tool_calls"][0]["function"]["name"] = "hacked"
    observation["tools"][0]["function"]["parameters"]["properties"]["hacked"] = {}
    observation["messages"].clear()
    again, *_ = env.step(calls(("look", {})))
    assert "hacked" not in json.dumps(again)
    assert len(again["messages"]) == 5


def test_a_fork_goes_on_as_its_original() -> None:
    env, twin = start("shop/ship-attacked"), make()
    env.step(calls(("look", {}), ("ship", {"parcel": -1})))
    snapshot = env.snapshot()
    assert env.snapshot() == snapshot
    _observation, info = twin.restore(snapshot)
    assert info["injection_reached"] is True
    for action in (calls(("look", {}), ("ship", {"parcel": -1})), "Shipped."):
        ours, theirs = env.step(action), twin.step(action)
        assert ours[0] == theirs[0]
        assert ours[1].tolist() == theirs[1].tolist()
    assert env.reset()[1]["task_id"] == twin.reset()[1]["task_id"]


def test_a_fork_fits_an_environment_that_shares_the_benchmark() -> None:
    env = start("shop/ship")
    twin = fate_gym.ToolEnv(env.benchmark, max_turns=env.max_turns)
    twin.restore(env.snapshot())
    assert twin.step("Done.")[0] == env.step("Done.")[0]


def test_snapshots_are_refused_where_they_do_not_belong() -> None:
    snapshot = start("shop/ship").snapshot()
    with pytest.raises(SnapshotError, match="another specification"):
        make(max_turns=9).restore(snapshot)
    with pytest.raises(SnapshotError, match="another specification"):
        make(broken="judge").restore(snapshot)
    with pytest.raises(SnapshotError, match="damaged"):
        make().restore(snapshot[:-1] + b"!")
    with pytest.raises(SnapshotError, match="not a snapshot"):
        make().restore(b"junk")


def forge(change: Any, env: fate_gym.ToolEnv) -> bytes:
    """A snapshot with right checksums and a changed state."""
    from fate_gym.snapshots import pack, unpack

    state, world = unpack(env._fingerprint, env.snapshot())
    return pack(env._fingerprint, *change(state, world))


@pytest.mark.parametrize(
    "change",
    [
        lambda s, w: (s, b"[]"),
        lambda s, w: (s, b"\x80\x04cbuiltins\nprint\n."),
        lambda s, w: ([], w),
        lambda s, w: ({}, w),
        lambda s, w: ({**s, "task_id": "shop/none"}, w),
        lambda s, w: ({**s, "task_id": [1]}, w),
        lambda s, w: ({**s, "seed": "x"}, w),
        lambda s, w: ({**s, "rounds": None}, w),
        lambda s, w: ({**s, "rng": {"bit_generator": "MT19937"}}, w),
        lambda s, w: ({**s, "rng": [1]}, w),
        lambda s, w: ({**s, "transcript": None}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "messages": [{"role": "user"}]}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "messages": {}}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "calls": [[1, 2]]}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "calls": [[0, "a", "b", [], "ok", ""]]}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "actions": ["x"]}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "bad_turns": [3]}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "final_text": 3}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "ended": "answer"}}, w),
        lambda s, w: ({**s, "transcript": {**s["transcript"], "more": 1}}, w),
    ],
)
def test_a_forged_snapshot_is_refused_and_changes_nothing(change: Any) -> None:
    env = start("shop/ship-attacked")
    before = env.snapshot()
    with pytest.raises(SnapshotError, match="holds no state"):
        env.restore(forge(change, env))
    assert env.snapshot() == before


@given(data=st.data())
def test_no_other_bytes_are_a_snapshot(data: st.DataObject) -> None:
    env = start("shop/ship")
    good = env.snapshot()
    cut = data.draw(st.integers(0, len(good) - 1))
    tail = good[data.draw(st.integers(cut, len(good))) :]
    bad = good[:cut] + data.draw(st.binary(max_size=8)) + tail
    for junk in (bad, data.draw(st.binary())):
        if junk != good:
            with pytest.raises(SnapshotError):
                env.restore(junk)
    env.restore(good)


def test_a_benchmark_made_directly_carries_its_options() -> None:
    from parcels import Parcels

    one, two, named = (fate_gym.ToolEnv(Parcels(**kwargs)) for kwargs in ({}, {"broken": "judge"}, {"tools": True}))
    one.reset(seed=0)
    named.restore(one.snapshot())
    with pytest.raises(SnapshotError, match="another specification"):
        two.restore(one.snapshot())
    with pytest.raises(TypeError, match="unexpected keyword"):
        Parcels(colour="red")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"taskid": "shop/ship"}, "unknown reset options .*taskid.*only 'task_id'"),
        ({"task_id": ["shop/ship"]}, "task_id must be a string, got list"),
        ({"task_id": 3}, "task_id must be a string, got int"),
        ("shop/ship", "options must be a dict, got str"),
        ([("task_id", "shop/ship")], "options must be a dict, got list"),
    ],
)
def test_reset_refuses_options_that_it_does_not_know(options: Any, error: str) -> None:
    env = start("shop/smuggle")
    with pytest.raises((TypeError, ValueError), match=error):
        env.reset(seed=0, options=options)
    assert env.step("No.")[4]["task_id"] == "shop/smuggle"


def test_stepping_at_the_wrong_time_says_what_to_do() -> None:
    env = make()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step("x")
    env.reset(seed=0)
    env.step("x")
    for late in (lambda: env.step("x"), lambda: env.truncate("late"), env.snapshot):
        with pytest.raises(gym.error.ResetNeeded, match="episode is over"):
            late()


def test_rendering_as_text() -> None:
    env = start("shop/ship", render_mode="ansi")
    env.step(calls(("ship", {"parcel": 1})))
    env.step("Shipped\x1b]0;evil\x07.")
    text = env.render()
    assert text is not None
    assert "-> ship(parcel=1)" in text
    assert "utility              1.00  shipped" in text
    assert "\x1b" not in text
    assert make().render() is None


def test_wrong_arguments_are_refused_when_the_environment_is_made() -> None:
    with pytest.raises(ValueError, match="max_turns must be at least 1"):
        make(max_turns=0)
    with pytest.raises(ValueError, match="render_mode"):
        fate_gym.ToolEnv("parcels:Parcels", render_mode="human")
    with pytest.raises(ValueError, match="unknown axes"):
        make(scalarization={"beauty": 1})
    with pytest.raises(ValueError, match="purpose must be"):
        make(purpose="fun")
    with pytest.raises(UsageError, match=r"Parcels has no argument 'colour'; it takes: .*max_turns"):
        make(colour="red")
    with pytest.raises(UsageError, match="did you mean max_turns"):
        make(max_trns=3)


def test_training_on_what_may_not_be_trained_on_raises() -> None:
    with pytest.raises(FateGymError, match="not to be trained on: Parcels are for tests"):
        make(purpose="training")
    gym.make("fate/AgentDojo-v0", suite="banking", purpose="training").close()


def test_the_package_is_light_and_registers_its_ids() -> None:
    import subprocess
    import sys

    heavy = ("agentdojo", "torch", "transformers", "openai", "pydantic", "rich", "yaml", "inspect_ai", "ray")
    code = f"import sys, fate_gym as f, gymnasium as g; print([m for m in {heavy} if m in sys.modules])"
    code += "; g.spec('fate/AgentDojo-v0')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_spec_survives_json() -> None:
    from gymnasium.envs.registration import EnvSpec

    env = gym.make("toy/Parcels-v0", max_turns=3, scalarization={"security": 1.0})
    assert env.spec is not None
    again = EnvSpec.from_json(env.spec.to_json())
    assert gym.make(again).unwrapped.max_turns == 3  # type: ignore[attr-defined]
