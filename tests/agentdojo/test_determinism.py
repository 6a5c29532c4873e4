"""The frozen clock and the ordered sets."""

import asyncio
import datetime
import os
import subprocess
import sys
import threading

import pytest
from agentdojo.default_suites.v1.tools import calendar_client, cloud_drive_client, email_client
from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.determinism import FROZEN_NOW, deterministic
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

FROZEN = datetime.datetime(*FROZEN_NOW)  # noqa: DTZ001 - AgentDojo's are naive
PEOPLE = [f"person{number}@example.com" for number in range(8)]


@pytest.fixture(scope="module")
def template():
    return SuiteTemplate(upstream.suites("v1.2.2")["workspace"])


@pytest.fixture
def environment(template):
    return template.environment({}).load()


def send(environment):
    return email_client.send_email(environment.inbox, ["a@example.com"], "s", "b").timestamp


def is_now(time):
    return abs(time - datetime.datetime.now()) < datetime.timedelta(minutes=5)  # noqa: DTZ005


def test_the_clock_is_frozen_inside_only(environment):
    assert is_now(send(environment))
    with deterministic():
        with deterministic():
            assert send(environment) == FROZEN
        first, second = send(environment), send(environment)
        file = cloud_drive_client.create_file(environment.cloud_drive, "f", "c")
        appended = cloud_drive_client.append_to_file(environment.cloud_drive, "0", "more")
    assert first == second == file.last_modified == appended.last_modified == FROZEN
    assert first is not second
    assert type(first) is datetime.datetime
    assert is_now(send(environment))


def test_sets_are_ordered_inside_only(environment):
    with deterministic():
        event = environment.calendar.create_event("t", "d", FROZEN, FROZEN, None, [*PEOPLE, PEOPLE[0]])
    assert event.participants == [*PEOPLE, environment.calendar.account_email]
    assert type(calendar_client.set("aab")) is set
    assert calendar_client.set("aab") == {"a", "b"}
    assert calendar_client.datetime.datetime is datetime.datetime


def test_duplicate_events_are_still_refused(environment):
    event = environment.calendar.initial_events[0]
    with deterministic(), pytest.raises(ValueError, match="must be unique"):
        calendar_client.Calendar(current_day="2024-05-15", account_email="a@example.com", initial_events=[event, event])


def test_an_exception_ends_the_context(environment):
    with pytest.raises(KeyError), deterministic():
        raise KeyError
    assert is_now(send(environment))


def test_other_threads_and_tasks_are_left_alone(template):
    times = []
    with deterministic():
        thread = threading.Thread(target=lambda: times.append(send(template.environment({}).load())))
        thread.start()
        thread.join()
    assert is_now(times[0])

    async def inside(started, done):
        with deterministic():
            started.set()
            await done.wait()
            return send(template.environment({}).load())

    async def both():
        started, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(started, done))
        await started.wait()
        outside = send(template.environment({}).load())
        done.set()
        return outside, await task

    outside, frozen = asyncio.run(both())
    assert is_now(outside)
    assert frozen == FROZEN


def timestamps(data):
    if isinstance(data, BaseModel):
        data = data.__dict__
    if isinstance(data, datetime.datetime):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from timestamps(value)
    elif isinstance(data, list):
        for value in data:
            yield from timestamps(value)


@pytest.mark.parametrize("name", ["workspace", "travel"])
def test_the_frozen_time_is_later_than_all_data(name):
    made = SuiteTemplate(upstream.suites("v1.2.2")[name])
    times = list(timestamps(made.environment({}).load()))
    assert times
    assert max(times) < FROZEN


REPLAY = """
import hashlib
from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.execution import call_tool
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
for version in ("v1", "v1.2.2"):
    for name, suite in upstream.suites(version).items():
        digest, made = hashlib.sha256(), SuiteTemplate(suite)
        tools = {tool.name: tool for tool in suite.tools}
        for task in [*suite.user_tasks.values(), *suite.injection_tasks.values()]:
            environment = made.environment({}).load()
            for call in task.ground_truth(environment):
                outcome = call_tool(tools, environment, call.function, call.args)
                digest.update(repr(outcome).encode())
            digest.update(environment.model_dump_json().encode())
        people = [f"person{number}@example.com" for number in range(8)]
        if "create_calendar_event" in tools:
            arguments = {"title": "t", "start_time": "2024-05-20 10:00", "end_time": "2024-05-20 11:00"}
            arguments["participants"] = people
            digest.update(repr(call_tool(tools, environment, "create_calendar_event", arguments)).encode())
        print(version, name, digest.hexdigest())
"""


def test_two_processes_give_the_same_bytes():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPLAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(first) == 8
    assert first == second
