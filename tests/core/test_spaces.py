from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import pytest

from fate_gym.spaces import ActionSpace, ObservationSpace


@pytest.mark.parametrize("space", [ActionSpace(), ObservationSpace()])
def test_samples_belong_to_their_space_and_follow_the_seed(space: gym.Space) -> None:
    space.seed(3)
    first = [space.sample() for _ in range(5)]
    space.seed(3)
    assert first == [space.sample() for _ in range(5)]
    assert all(space.contains(sample) for sample in first)
    assert not space.is_np_flattenable
    assert space == type(space)()
    assert hash(space) == hash(type(space)())
    assert repr(space) == f"{type(space).__name__}()"
    assert ActionSpace() != ObservationSpace()


def test_actions_are_what_step_is_meant_for() -> None:
    for action in ("text", {"content": "x"}, {"role": "assistant"}, SimpleNamespace(model_dump=dict)):
        assert ActionSpace().contains(action)
    for action in (None, 3, {"role": "user"}, SimpleNamespace(model_dump=3)):
        assert not ActionSpace().contains(action)


def test_observations_can_be_passed_on_to_an_api() -> None:
    message = {"role": "user", "content": "x"}
    assert ObservationSpace().contains({"messages": [message], "tools": [{}]})
    for observation in (
        None, [], {}, {"messages": "x"}, {"messages": [{}]}, {"messages": [message], "tools": []},
        {"messages": [message], "seed": 1}, {"messages": [message], "tools": "x"},
    ):  # fmt: skip
        assert not ObservationSpace().contains(observation)
