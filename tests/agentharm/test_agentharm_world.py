"""The tools: as inspect runs them, from anywhere, without a trace in upstream's modules."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agentharm_folder
import gymnasium as gym
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_gym.benchmarks.agentharm import upstream
from fate_gym.benchmarks.agentharm.demonstrations import example
from fate_gym.benchmarks.agentharm.world import AgentHarmWorld, shortened

KINDS: tuple[upstream.Kind, ...] = ("harmful", "benign")


def world(kind: upstream.Kind, seed: int = 0) -> AgentHarmWorld:
    return AgentHarmWorld([], upstream.package(kind).tools, seed)


def upstream_tools(kind: str) -> Any:
    from inspect_evals.agentharm.benchmark import benign_tools, harmful_tools

    return harmful_tools if kind == "harmful" else benign_tools


def home() -> Path:
    """The one folder from which upstream's relative paths hold."""
    from inspect_evals.agentharm import benchmark

    return Path(next(iter(benchmark.__path__))).parent


def inspect_answers(kind: str, calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Runs calls by inspect's own loop."""
    from inspect_ai.model import ChatMessageAssistant, execute_tools
    from inspect_ai.tool import ToolCall

    module = upstream_tools(kind)
    tools = [getattr(module, name)() for name in module.__all__]
    requested = [ToolCall(id=f"c{i}", function=name, arguments=args) for i, (name, args) in enumerate(calls)]
    return asyncio.run(execute_tools([ChatMessageAssistant(content="", tool_calls=requested)], tools)).messages


RANDOM = {"post_to_blog", "upload_file"}

texts = st.sampled_from(
    ["", "./to_do.txt", "keys/passwords.txt", "work", ".", "1706.03762", "@silver_fox", "é" * 20_000]
)
plain: dict[str, st.SearchStrategy[Any]] = {
    "string": texts | st.text(max_size=8),
    "integer": st.integers(-3, 200) | st.just(2.0),
    "number": st.integers(-3, 9) | st.floats(-10, 10),
}


def arguments_for(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Right arguments, and such as lack one, have one of the wrong type, or one too many."""
    right = {
        name: st.lists(plain["string"], max_size=2) if prop["type"] == "array" else plain[prop["type"]]
        for name, prop in schema["properties"].items()
    }
    wrong = {name: strategy | st.none() | st.just([1]) for name, strategy in right.items()}
    extra = {"unheard of": st.integers()}
    return st.fixed_dictionaries(right) | st.fixed_dictionaries({}, optional={**wrong, **extra})


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_calls_end_as_in_inspects_own_loop(kind: upstream.Kind, data: st.DataObject) -> None:
    tools = {name: tool for name, tool in upstream.package(kind).tools.items() if name not in RANDOM}
    names = data.draw(st.lists(st.sampled_from(sorted(tools)), min_size=8, max_size=8))
    calls = [(name, data.draw(arguments_for(tools[name].parameters))) for name in names]
    calls.append(("no_such_tool", {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home())
        expected = inspect_answers(kind, calls)
    ours = world(kind)
    for (name, arguments), message in zip(calls, expected, strict=True):
        outcome = ours.call(name, arguments)
        if message.error is None:
            assert (outcome.kind, outcome.text) == ("ok", message.text)
        else:
            assert message.error.type == "parsing"
            assert outcome.kind in ("bad_arguments", "unknown_tool")
            assert outcome.text == message.error.message


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_those_that_inspect_sends(kind: upstream.Kind) -> None:
    from inspect_ai.model._openai import openai_chat_tools
    from inspect_ai.tool import ToolDef, ToolInfo

    module = upstream_tools(kind)
    definitions = [ToolDef(getattr(module, name)()) for name in sorted(module.__all__)]
    infos = [ToolInfo(name=d.name, description=d.description, parameters=d.parameters) for d in definitions]
    assert [tool.schema for tool in upstream.package(kind).tools.values()] == openai_chat_tools(infos)
    assert len(infos) == 80


def test_examples_fit_any_schema() -> None:
    kinds: dict[str, Any] = {name: {"type": name} for name in ("integer", "number", "boolean", "string", "object")}
    kinds |= {"list": {"type": "array", "items": {"type": "string"}}, "one": {"enum": ["red", "blue"]}, "any": {}}
    schema = {"type": "object", "properties": {**kinds, "left out": {}}, "required": list(kinds)}
    made = example(schema)
    jsonschema.validate(made, schema)
    assert list(made) == list(kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_runs(kind: upstream.Kind) -> None:
    ours = world(kind)
    assert {ours.call(name, example(tool.parameters)).kind for name, tool in ours._tools.items()} == {"ok"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_leaves_a_trace_in_upstreams_modules(kind: upstream.Kind) -> None:
    """If this fails after an update of inspect_evals, a further tool keeps state: see `upstream.STATE`."""
    before = _module_state(kind)
    for name, tool in upstream.package(kind).tools.items():
        for arguments in (example(tool.parameters), {**example(tool.parameters), **_bundled(tool.parameters)}):
            assert world(kind).call(name, arguments).kind in ("ok", "tool_error")
    assert _module_state(kind) == before


def _bundled(schema: dict[str, Any]) -> dict[str, str]:
    return {name: "keys/passwords.txt" for name in schema["properties"] if "file" in name or "path" in name}


def _module_state(kind: str) -> dict[str, str]:
    import random

    state = {"random": str(random.getstate())}
    module = upstream_tools(kind)
    for name in module.__all__:
        names = vars(__import__("sys").modules[f"{module.__name__}.{name}"])
        state |= {f"{name}.{key}": repr(value) for key, value in names.items() if isinstance(value, dict | list | set)
                  and not key.startswith("__")}  # fmt: skip
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_bundled_files_are_found_from_any_directory(
    kind: upstream.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = [
        ("read_file", {"file": "./to_do.txt"}),
        ("edit_txt", {"file_path": "to_do.txt", "line_number": 1, "new_content": "x"}),
        ("convert_pdf_to_text", {"file_path": "attention.pdf"}),
        ("convert_pdf_to_text", {"file_path": "other.pdf"}),
    ]
    here = [world(kind).call(*call) for call in calls]
    assert [outcome.kind for outcome in here] == ["ok"] * 4
    monkeypatch.chdir(home())
    assert [message.text for message in inspect_answers(kind, calls)] == [outcome.text for outcome in here]
    assert "not found" not in here[2].text
    assert "Error: File not found" in here[3].text


def test_a_tool_that_raises_is_an_outcome() -> None:
    """None of this version's can; the next one's may."""

    async def run(file: str) -> str:
        raise KeyError(file)

    broken = dataclasses.replace(upstream.package("harmful").tools["read_file"], function=run)
    outcome = AgentHarmWorld([], {"read_file": broken}, 0).call("read_file", {"file": "x"})
    assert (outcome.kind, outcome.text) == ("tool_error", "'x'")


def test_numbers_beyond_a_float_are_bad_arguments() -> None:
    tool = upstream.package("harmful").tools["transfer_money"]
    outcome = world("harmful").call("transfer_money", {**example(tool.parameters), "amount": 10**400})
    assert outcome.kind == "bad_arguments"


def links(env_seed: int, draws: int = 3) -> list[str]:
    ours = world("benign", env_seed)
    return [ours.call("upload_file", {"file_path": "x"}).text for _ in range(draws)]


def test_draws_follow_the_seed() -> None:
    assert links(1) == links(1) != links(2)
    assert len(set(links(1))) == 3


LOG = {"user": "Ann", "action": "looked", "database_address": "db", "timestamp": "noon"}


def test_a_dump_holds_draws_and_logs() -> None:
    first, second = world("benign"), world("benign")
    first.call("upload_file", {"file_path": "x"})
    first.call("log_security_audit", LOG)
    second.load(first.dump())
    assert json.loads(second.dump()) == [1, [LOG]]
    ends = {ours.call("upload_file", {"file_path": "x"}).text for ours in (first, second)}
    assert len(ends) == 1
    assert first.dump() == second.dump()


def test_episodes_at_once_share_nothing() -> None:
    alone = {seed: links(seed, 40) for seed in range(6)}
    barrier = threading.Barrier(6)

    def run(seed: int) -> tuple[list[str], bytes]:
        ours = world("benign", seed)
        barrier.wait()
        found = []
        for step in range(40):
            found.append(ours.call("upload_file", {"file_path": "x"}).text)
            ours.call("log_security_audit", {**LOG, "user": f"{seed}-{step}"})
        return found, ours.dump()

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(run, range(6)))
    for seed, (found, dump) in enumerate(results):
        assert found == alone[seed]
        assert [entry["user"] for entry in json.loads(dump)[1]] == [f"{seed}-{step}" for step in range(40)]


def make(**options: Any) -> Any:
    kwargs = {"split": "validation", "data_dir": agentharm_folder.folder(), **options}
    return gym.make("fate/AgentHarm-v0", **kwargs).unwrapped


def test_a_snapshot_forks_an_episode_that_has_drawn() -> None:
    env = make(config="harmless_benign", n_irrelevant_tools=100)
    env.reset(seed=3)
    upload = {"tool_calls": [{"function": {"name": "upload_file", "arguments": {"file_path": "x"}}}]}
    env.step(upload)
    snapshot = env.snapshot()
    ends = []
    for fork in (env, make(config="harmless_benign", n_irrelevant_tools=100)):
        observation, _ = fork.restore(snapshot)
        ends.append([observation, fork.step(upload)[0]])
    assert ends[0] == ends[1]
    answers = [message["content"] for message in ends[0][1]["messages"] if message["role"] == "tool"]
    assert len(set(answers)) == 2


def test_the_seed_decides_which_tools_are_offered_and_in_which_order() -> None:
    env = make(n_irrelevant_tools=5)
    task_id = env.tasks[0]
    targets = env.benchmark._records[task_id].target_functions

    def offered(seed: int) -> list[str]:
        observation, _ = env.reset(seed=seed, options={"task_id": task_id})
        return [tool["function"]["name"] for tool in observation["tools"]]

    assert offered(1) == offered(1)
    assert len({tuple(offered(seed)) for seed in range(5)}) == 5
    assert len({frozenset(offered(seed)) for seed in range(5)}) == 5
    for seed in range(5):
        assert set(targets) < set(offered(seed))
        assert len(offered(seed)) == len(set(offered(seed))) == len(targets) + 5
    assert len(make(n_irrelevant_tools=1000).reset(seed=0)[0]["tools"]) == 80


def test_long_answers_are_cut_in_the_middle() -> None:
    assert shortened("x", "a" * 16384) == "a" * 16384
    assert "<START_TOOL_OUTPUT>\n" + "a" * 8192 + "b" * 8192 in shortened("x", "a" * 9000 + "b" * 9000)


def test_code_that_awaits_is_refused() -> None:
    async def wait() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="awaits"):
        upstream.drive(wait())
