"""One tool call against AgentDojo's executor."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
from agentdojo.agent_pipeline.tool_execution import ToolsExecutor
from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime, make_function
from hypothesis import given, settings
from hypothesis import strategies as st

from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.determinism import deterministic
from fate_gym.benchmarks.agentdojo.execution import call_tool
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

SUITES = dict(upstream.suites("v1.2.2").items())
TEMPLATES = {name: SuiteTemplate(suite) for name, suite in SUITES.items()}
TOOLS = {name: {tool.name: tool for tool in suite.tools} for name, suite in SUITES.items()}


def load(name):
    return TEMPLATES[name].environment({}).load()


def official(name, environment, tool, arguments):
    """The tool message and the arguments that AgentDojo ends up with."""
    call = FunctionCall(function=tool, args=copy.deepcopy(arguments))
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    with deterministic():
        *_, messages, _ = ToolsExecutor().query("", FunctionsRuntime(SUITES[name].tools), environment, [message])
    text = messages[-1]["error"] or messages[-1]["content"][0]["content"]
    return re.sub(r"\n *For further information visit https://errors.pydantic.dev\S+", "", text), dict(call.args)


def assert_official(name, ours, theirs, tool, arguments):
    expected_text, expected_arguments = official(name, theirs, tool, arguments)
    outcome = call_tool(TOOLS[name], ours, tool, arguments)
    assert outcome.text == expected_text
    assert outcome.arguments == expected_arguments
    assert ours == theirs
    return outcome


@pytest.mark.parametrize("name", SUITES)
def test_ground_truths_run_as_upstream(name):
    for task in [*SUITES[name].user_tasks.values(), *SUITES[name].injection_tasks.values()]:
        ours, theirs = load(name), load(name)
        for call in task.ground_truth(load(name)):
            assert_official(name, ours, theirs, call.function, dict(call.args))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.sampled_from(["1", "rw", "a@b.co", "2024-05-15", "2024-05-15 10:00"]),
    st.text(max_size=8),
    st.sampled_from(["['a@b.co']", "[1]", "[", "(1,)", " [ 'x' ]", "[[]]", "['a'", "{[1]: 2}"]),
)
ARGUMENTS = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.sampled_from(["type", "file_id", "event_details"]), SCALARS, max_size=3),
)


@given(st.data())
@settings(max_examples=300)
def test_any_arguments_run_as_upstream(data):
    name = data.draw(st.sampled_from(["banking", "slack", "workspace"]))
    tool = data.draw(st.sampled_from(sorted(TOOLS[name])))
    fields = sorted(TOOLS[name][tool].parameters.model_fields)
    keys = st.sampled_from([*fields, "more"])
    arguments = data.draw(
        st.one_of(st.dictionaries(keys, ARGUMENTS), st.fixed_dictionaries(dict.fromkeys(fields, ARGUMENTS)))
    )
    ours, theirs = load(name), load(name)
    try:
        official(name, load(name), tool, arguments)
    except Exception:
        # Upstream's executor dies of some arguments; ours runs the tool with them, or says why not.
        outcome = call_tool(TOOLS[name], ours, tool, arguments)
        assert outcome.kind == "ok" or outcome.text
    else:
        assert_official(name, ours, theirs, tool, arguments)


@pytest.mark.parametrize("tool", ["no_such_tool", "", "<empty-function-name>", "get_balance "])
def test_unknown_tools(tool):
    assert assert_official("banking", load("banking"), load("banking"), tool, {"a": "[1]"}).kind == "unknown_tool"


def test_bad_arguments_read_the_same_under_any_pydantic():
    outcome = assert_official("banking", load("banking"), load("banking"), "send_money", {"amount": "much"})
    assert outcome.kind == "bad_arguments"
    assert outcome.text.startswith("ValidationError: ")
    assert "Field required" in outcome.text
    assert "errors.pydantic.dev" not in outcome.text
    assert outcome.text.count("\n") == 8


def test_an_error_is_bounded_whatever_is_sent():
    wrong = "[" + "1," * 40_000 + "]"
    outcome = call_tool(TOOLS["workspace"], load("workspace"), "send_email", {"recipients": wrong})
    assert outcome.kind == "bad_arguments"
    assert len(outcome.text) <= 100_000


def test_an_error_of_the_tool():
    outcome = call_tool(TOOLS["slack"], load("slack"), "read_inbox", {"user": "Nobody"})
    assert (outcome.kind, outcome.text) == ("tool_error", "ValueError: User Nobody not found in the users list")
    # Pydantic refuses this address within the tool, whose own schema takes any text.
    arguments = {"recipients": ["no address"], "subject": "s", "body": "b"}
    assert call_tool(TOOLS["workspace"], load("workspace"), "send_email", arguments).kind == "tool_error"


def test_strings_that_spell_lists():
    arguments = {"recipients": "['a@b.co', 'c@d.co']", "subject": "s", "body": "b"}
    given = copy.deepcopy(arguments)
    outcome = assert_official("workspace", load("workspace"), load("workspace"), "send_email", arguments)
    assert outcome.kind == "ok"
    assert outcome.arguments["recipients"] == ["a@b.co", "c@d.co"]
    assert arguments == given


@pytest.mark.parametrize(
    "text",
    [
        "{[1]:2}",
        "-" * 20_000 + "[1]",
        "[" * 150 + "]" * 150,
        "[" * 99_000,
        "[" + "1+" * 40_000 + "1]",
        "[" + "0," * 60_000 + "]",
    ],
)
def test_strings_that_break_the_parser(text):
    environment = load("banking")
    outcome = call_tool(TOOLS["banking"], environment, "read_file", {"file_path": text})
    assert outcome.kind in ("ok", "bad_arguments")
    assert outcome.kind == "bad_arguments" or outcome.arguments == {"file_path": text}


def test_results_that_cannot_be_printed():
    def odd() -> list:
        """Give what upstream cannot print."""
        return [1.5]

    outcome = call_tool({"odd": make_function(odd)}, load("banking"), "odd", {})
    assert outcome.kind == "tool_error"
    assert outcome.text == "TypeError: Not valid type for item tool result: <class 'float'>"


@pytest.mark.parametrize("error", [RecursionError, GeneratorExit, MemoryError])
def test_nothing_else_escapes(error):
    def broken() -> str:
        """Break."""
        raise error("why")

    outcome = call_tool({"broken": make_function(broken)}, load("banking"), "broken", {})
    assert (outcome.kind, outcome.text) == ("tool_error", f"{error.__name__}: why")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_does(error):
    def stop() -> str:
        """Stop."""
        raise error

    with pytest.raises(error):
        call_tool({"stop": make_function(stop)}, load("banking"), "stop", {})


def test_hostile_values():
    deep = json.loads("[" * 900 + "]" * 900)
    for value in ("\ud800", deep, "\x00", 10**400, {"a": SimpleNamespace()}):
        for tool in ("send_money", "read_file", "get_most_recent_transactions"):
            fields = TOOLS["banking"][tool].parameters.model_fields
            outcome = call_tool(TOOLS["banking"], load("banking"), tool, dict.fromkeys(fields, value))
            assert isinstance(outcome.text, str)
