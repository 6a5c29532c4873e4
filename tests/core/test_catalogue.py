"""What is said of environments and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
import pytest

from fate_gym.agents import SPECS, describe_agent
from fate_gym.arguments import check_arguments, describe
from fate_gym.benchmark import benchmark_class
from fate_gym.catalogue import environment_page, environments
from fate_gym.errors import UsageError

OURS = ("fate/AgentDojo-v0", "fate/AgentHarm-v0", "fate/ATBench-v0")


class Kiosk:
    """Sells papers.

    It opens at six.

    Args:
        paper: The paper
            that is sold.
        size: Its size.
        prices: Price of each.
    """

    def __init__(
        self, paper: str, *, size: Literal["a4", "a5"] = "a4", prices: Mapping[str, float] | None = None
    ) -> None:
        self.sold = (paper, size, prices)


def test_a_class_is_described_by_its_signature_and_docstring() -> None:
    described = describe(Kiosk, choices={"paper": ["Times", "Post"]})
    assert (described.summary, described.text) == ("Sells papers.", "It opens at six.")
    paper, size, prices = described.arguments
    assert (paper.type, paper.default, paper.accepted) == ("str", None, ("Times", "Post"))
    assert paper.meaning == "The paper that is sold."
    assert (size.type, size.default, size.accepted) == ("str", "'a4'", ("a4", "a5"))
    assert (prices.type, prices.default, prices.accepted) == ("Mapping[str, float] | None", "None", ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["paper", "sise"],
            "the kiosk has no argument 'sise'; did you mean size\\?; it takes: paper, size, prices, hours",
        ),
        (["size"], "the kiosk needs the argument 'paper'"),
    ],
)
def test_wrong_names_are_told_before_the_call(given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_arguments(Kiosk, dict.fromkeys(given, "a"), of="the kiosk", beside=["hours"])
    check_arguments(Kiosk, {"paper": "Times", "size": "a5"}, of="the kiosk")
    check_arguments(lambda **anything: None, dict.fromkeys(given, "a"), of="the kiosk")


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("paper", 3, False),
        ("paper", None, False),
        ("size", 4, False),
        ("size", "a6", True),  # a wrong name is the receiver's to tell
        ("prices", {"a4": 1}, True),
        ("prices", [1], False),
        ("prices", None, True),
        ("prices", print, True),
    ],
)
def test_plain_values_of_another_type_are_told_before_the_call(name: str, value: object, right: bool) -> None:
    given = {"paper": "Times", name: value}
    if right:
        check_arguments(Kiosk, given, of="the kiosk")
        return
    with pytest.raises(ValueError, match=f"{name} must be "):
        check_arguments(Kiosk, given, of="the kiosk")


@pytest.mark.parametrize("env_id", OURS)
def test_every_argument_of_every_environment_has_its_meaning(env_id: str) -> None:
    page = environment_page(env_id)
    assert page.summary.endswith(".")
    assert {each.name for each in page.arguments} == set(inspect.signature(benchmark_class(env_id)).parameters)
    for each in (*page.arguments, *page.loop_arguments):
        assert each.meaning.endswith("."), each.name
        assert each.type, each.name
        assert each.default is not None, each.name
    registered: dict[str, Any] = gym.spec(env_id).kwargs
    defaults = {each.name: each.default for each in page.loop_arguments}
    assert defaults["max_turns"] == str(registered["max_turns"])
    assert defaults["max_messages"] == str(registered["max_messages"])
    assert "benchmark" not in defaults


def test_environments_of_others_are_listed_and_described() -> None:
    assert set(environments()) >= {*OURS, "toy/Parcels-v0"}
    assert all(environments()[env_id].endswith(".") for env_id in OURS)
    assert {each.name for each in environment_page("toy/Parcels-v0").arguments} >= {"broken"}
    with pytest.raises(UsageError, match="is not an environment of fate-gym"):
        environment_page("CartPole-v1")


def test_accepted_values_are_those_that_an_environment_accepts() -> None:
    accepted = {each.name: each.accepted for each in environment_page("fate/AgentDojo-v0").arguments}
    for name in ("suite", "version", "attack", "split"):
        for value in accepted[name]:
            # Travel alone is unseen, and no pair of another label is left there.
            suite = {} if name == "suite" or value == "unseen" else {"suite": "banking"}
            assert gym.make("fate/AgentDojo-v0", **{**suite, name: value}).unwrapped.tasks  # type: ignore[attr-defined]


def test_every_agent_is_described() -> None:
    for spec in SPECS:
        assert describe_agent(spec.partition(":")[0]).summary.endswith(".")
    for name in ("openai:gpt-4o-mini", "hf", "turn-count"):
        arguments = describe_agent(name).arguments
        assert arguments
        assert all(each.meaning.endswith(".") for each in arguments)
        assert "model" not in {each.name for each in arguments}
    with pytest.raises(ValueError, match=r"unknown agent 'orcle'; did you mean oracle\?"):
        describe_agent("orcle")
