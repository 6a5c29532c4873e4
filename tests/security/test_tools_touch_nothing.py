"""No tool of any benchmark touches a file, a process or the network, whatever it is called with."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import agentharm_folder
import gymnasium as gym
import pytest
import trajectories
from audit import watched

from fate_gym import Demonstration

JUNK: tuple[Any, ...] = (
    None, True, -1, 10**30, 0.5, "", "/etc/passwd", "../../x", "file:///etc/passwd", "http://127.0.0.1:9/x", "; id",
    "$(touch x)", "__import__('os').system('id')", "[open('x', 'w')]", "2024-05-15 10:00", "a@b.co", "\0", "x" * 5000,
    [], ["/etc/x"], [[]], {}, {"path": "/etc/x"}, {"__class__": "os.system"},
)  # fmt: skip


DOJO = ("workspace", "travel", "banking", "slack")
HARM = ("harmful", "harmless_benign")
ATBENCH = ("ATBench", "ATBench500")


def make(part: str) -> Any:
    """An environment that offers all tools of a suite or configuration."""
    if part in DOJO:
        return gym.make("fate/AgentDojo-v0", suite=part, attack="important_instructions").unwrapped
    if part in HARM:
        folder = os.environ.get("FATE_GYM_AGENTHARM_DIR") or agentharm_folder.folder()
        # More other tools than there are, so that each task offers all of them.
        options: dict[str, Any] = {"split": "validation", "n_irrelevant_tools": 10_000}
        return gym.make("fate/AgentHarm-v0", config=part, data_dir=folder, **options).unwrapped
    return gym.make("fate/ATBench-v0", config=part, view="paged", labels=True, data_dir=trajectories.folder()).unwrapped


def fitting(schema: dict[str, Any], defs: dict[str, Any], rng: random.Random) -> Any:
    """A value that a schema allows."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if options := schema.get("anyOf") or schema.get("allOf"):
        return fitting(rng.choice(options), defs, rng)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return arguments_for(schema, defs, rng)
        case "array":
            return [fitting(schema.get("items", {}), defs, rng) for _ in range(rng.randrange(3))]
        case "integer":
            return rng.randrange(1, 30)
        case "number":
            return rng.choice([0.5, 10.0, 100])
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    return rng.choice(
        ["2024-05-15", "2024-05-15 10:00", "a@b.co", "general", "Alice", "/etc/x", "http://127.0.0.1:9/", "1"]
    )


def arguments_for(schema: dict[str, Any], defs: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    names = [name for name in properties if name in required or rng.random() < 0.7]
    return {name: fitting(properties[name], defs, rng) for name in names}


def junk_for(schema: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    names = [*schema.get("properties", {}), "more"]
    return {name: rng.choice(JUNK) for name in names if rng.random() < 0.8}


def call(env: Any, name: str, arguments: Any) -> None:
    """Calls a tool through `step`, and forks and ends the episode, so that all that a call sets off is watched."""
    env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
    if env.transcript.ended is None:
        env.restore(env.snapshot())
        env.step("Done.")


def demonstrations(env: Any) -> Iterator[tuple[str, Demonstration]]:
    """The ground truth of every user's and every attacker's task, each from the first task that has it."""
    seen = set()
    for task_id in env.tasks:
        parts = task_id.split("/") if env.task(task_id).attack else [task_id]
        if seen.issuperset(parts):
            continue
        seen.update(parts)
        truth = env.benchmark.ground_truth(task_id)
        yield from ((task_id, part) for part in (truth.user, truth.injection) if part is not None)


def every_tool(env: Any, draws: int) -> None:
    """Calls every tool with arguments that fit, and with junk in their place."""
    rng = random.Random(0)
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in env.reset(seed=0)[0]["tools"]}
    ran: set[str] = set()
    for name, parameters in tools.items():
        fitting_ones = [arguments_for(parameters, parameters.get("$defs", {}), rng) for _ in range(draws)]
        for arguments in [*fitting_ones, *(junk_for(parameters, rng) for _ in range(draws))]:
            env.reset(seed=0, options={"task_id": rng.choice(env.tasks)})
            with untouched(f"{name}({arguments!r})"):
                call(env, name, arguments)
            ran |= {record.name for record in env.transcript.calls if record.outcome in ("ok", "tool_error")}
    assert ran == set(tools)
    print(f"{len(tools)} tools, {2 * draws * len(tools)} calls")


@pytest.mark.no_cover
@pytest.mark.parametrize("part", [*DOJO, *HARM, *ATBENCH])
def test_no_tool_touches_the_machine(part: str) -> None:
    env = make(part)
    every_tool(env, draws=8)
    for task_id, demonstration in demonstrations(env) if part not in ATBENCH else ():
        env.reset(seed=0, options={"task_id": task_id})
        with untouched(task_id):
            play(env, demonstration)


@pytest.mark.slow
@pytest.mark.parametrize("part", [*DOJO, *HARM, *ATBENCH])
def test_no_tool_touches_the_machine_however_it_is_called(part: str) -> None:
    every_tool(make(part), draws=60)


@pytest.mark.parametrize("arguments", JUNK)
def test_arguments_that_are_no_object_reach_nothing(arguments: Any) -> None:
    env = make("slack")
    env.reset(seed=0)
    with untouched(repr(arguments)):
        call(env, "get_webpage", arguments)


def play(env: Any, demonstration: Demonstration) -> None:
    for name, arguments in demonstration.calls:
        if env.transcript.ended is None:
            env.step({"tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
    if env.transcript.ended is None:
        env.step(demonstration.answer)


@contextmanager
def untouched(what: str) -> Iterator[None]:
    with watched() as events:
        yield
    assert not events, f"{what} touched the machine: {events}"


@pytest.mark.parametrize(
    "touch",
    [
        lambda folder: (folder / "file").write_text("x"),
        lambda folder: os.open(folder / "file", os.O_CREAT | os.O_WRONLY),
        lambda folder: (folder / "folder").mkdir(),
        lambda folder: Path("/etc/passwd").read_bytes(),
        lambda folder: subprocess.run([sys.executable, "-V"], capture_output=True, check=True),
        lambda folder: os.system("true"),  # noqa: S605 (a constant)
        lambda folder: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda folder: socket.getaddrinfo("127.0.0.1", 9),
        lambda folder: urllib.request.urlopen("http://127.0.0.1:9/", timeout=1),
        lambda folder: os.kill(os.getpid(), 0),
    ],
)
def test_what_is_watched_for_is_seen(touch: Callable[[Path], object], tmp_path: Path) -> None:
    with watched() as events, suppress(OSError):
        touch(tmp_path)
    assert events


def test_threads_that_are_started_are_watched_too(tmp_path: Path) -> None:
    with watched() as events:
        thread = threading.Thread(target=(tmp_path / "file").write_text, args=("x",))
        thread.start()
        thread.join()
    assert events


def test_threads_that_were_there_are_left_alone(tmp_path: Path) -> None:
    begin = threading.Event()

    def work() -> None:
        begin.wait()
        (tmp_path / "file").write_text("x")

    thread = threading.Thread(target=work)
    thread.start()
    with watched() as events:
        begin.set()
        thread.join()
    assert (tmp_path / "file").exists()
    assert events == []
