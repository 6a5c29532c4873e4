"""Environments in pieces: whole again they are what they were, and nobody shares what can be changed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from agentdojo.functions_runtime import Depends, TaskEnvironment, make_function
from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo.packed import PackedEnvironment
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
from fate_gym.benchmarks.agentdojo.upstream import suites

LONG = "a text that all copies share"


class Shelf(BaseModel):
    books: list[str]
    note: str = LONG


class House(TaskEnvironment):  # type: ignore[misc]
    shelf: Shelf
    other: Shelf
    address: str = LONG


def house(**shelves: Shelf) -> House:
    made: House = House.model_construct(**shelves)
    return made


def call(env: Any, name: str, **arguments: Any) -> None:
    env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})


@pytest.mark.parametrize("name", ["workspace", "travel", "banking", "slack"])
def test_an_environment_loaded_field_by_field_is_the_whole_one(name: str) -> None:
    packed = SuiteTemplate(suites("v1.2.2")[name]).environment({})
    assert len(set(packed.fields.values())) == len(packed.fields), (
        "the fields of AgentDojo's environments share nothing"
    )
    whole, filled = packed.load(), packed.frame_alone()
    packed.fill(filled, reversed(packed.fields))
    packed.complete(filled, whole)
    assert filled == whole
    assert filled.model_dump_json() == whole.model_dump_json()
    assert filled.model_fields_set == whole.model_fields_set


def test_copies_share_texts_and_nothing_that_can_be_changed() -> None:
    packed = PackedEnvironment.pack(house(shelf=Shelf(books=[LONG]), other=Shelf(books=["b"])))
    first, second = packed.load(), packed.load()
    assert first.shelf.books[0] is second.shelf.books[0]
    first.shelf.books.append("c")
    first.other.note = ""
    assert second == packed.load() == house(shelf=Shelf(books=[LONG]), other=Shelf(books=["b"]))


def test_fields_that_share_an_object_are_loaded_together() -> None:
    shelf = Shelf(books=["a"])
    packed = PackedEnvironment.pack(house(shelf=shelf, other=shelf))
    environment = packed.frame_alone()
    packed.fill(environment, ["other"])
    assert environment.shelf is environment.other
    apart = PackedEnvironment.pack(house(shelf=shelf, other=shelf.model_copy(deep=True)))
    environment = apart.frame_alone()
    apart.fill(environment, ["other"])
    assert vars(environment).keys() == {"other"}


def test_a_tool_needs_the_fields_that_it_names_or_all() -> None:
    packed = PackedEnvironment.pack(house(shelf=Shelf(books=[]), other=Shelf(books=[])))

    def needs(dependency: Any) -> set[str]:
        def tool(shelf: Any) -> str:
            """Reads.

            :param shelf: A shelf.
            """
            return str(shelf)

        function = make_function(tool)
        function.dependencies["shelf"] = Depends(dependency)
        return set(packed.needed_by(function))

    assert needs("shelf") == {"shelf"}
    assert needs(lambda environment: environment.shelf) == needs("a_property") == {"shelf", "other", "address"}


def test_what_no_call_asked_for_is_one_object_before_and_after() -> None:
    env = gym.make("fate/AgentDojo-v0", suite="workspace").unwrapped
    env.reset(seed=0)
    world = env._play.world
    assert world.dump() == b""
    call(env, "create_calendar_event", title="t", start_time="2024-05-15 10:00", end_time="2024-05-15 11:00")
    before, after = world.states()
    assert before.cloud_drive is after.cloud_drive
    assert before.calendar is not after.calendar
    assert len(after.calendar.events) == len(before.calendar.events) + 1
    assert list(vars(after)) == list(vars(before))
    assert before == env.benchmark.open(env._play.task.id, 0).environment


def test_a_tasks_own_preparation_is_part_of_what_is_packed() -> None:
    def prepare(environment: Any) -> Any:
        environment.bank_account.balance = -7.0
        return environment

    template = SuiteTemplate(suites("v1.2.2")["banking"])
    assert template.environment({}, prepare).load().bank_account.balance == -7.0
    assert template.environment({}).load().bank_account.balance != -7.0
