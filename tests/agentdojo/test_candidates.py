"""The table of vectors that ground truths show, and the registry it goes by."""

import sys
from pathlib import Path

import pytest
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks import load_attack
from agentdojo.base_tasks import BaseUserTask
from agentdojo.functions_runtime import FunctionCall, TaskEnvironment, make_function
from agentdojo.task_suite import load_suites
from agentdojo.task_suite.task_suite import TaskSuite

from fate_gym.benchmarks.agentdojo import candidates as module
from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.candidates import candidates

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import agentdojo_tables


class Local(BasePipelineElement):
    name = "local"

    def query(self, *args, **kwargs):
        raise NotImplementedError


def assert_upstream(version, name, step):
    suite = upstream.suites(version)[name]
    attack = load_attack("direct", suite, Local())
    table = candidates(version, name)
    assert list(table) == sorted(suite.user_tasks, key=lambda task: int(task.removeprefix("user_task_")))
    for task in list(suite.user_tasks.values())[::step]:
        assert list(table[task.ID]) == attack.get_injection_candidates(task)


@pytest.mark.parametrize(("name", "step"), [("workspace", 8), ("travel", 5), ("banking", 1), ("slack", 1)])
def test_equals_upstream(name, step):
    assert_upstream("v1.2.2", name, step)


@pytest.mark.slow
@pytest.mark.parametrize("version", upstream.versions())
@pytest.mark.parametrize("name", ["workspace", "travel", "banking", "slack"])
def test_equals_upstream_everywhere(version, name):
    assert_upstream(version, name, 1)


@pytest.mark.no_cover
def test_the_shipped_tables_are_complete_and_current(monkeypatch, tmp_path):
    assert agentdojo_tables.main(["--check"]) == 0
    path = tmp_path / "split.json"
    monkeypatch.setattr(agentdojo_tables, "tables", lambda: {path: "new"})
    assert agentdojo_tables.main(["--check"]) == 1
    assert agentdojo_tables.main([]) == 0
    assert path.read_text() == "new"
    for version in upstream.versions():
        for name, suite in upstream.suites(version).items():
            assert module._shipped()[version][name].keys() == suite.user_tasks.keys()


def test_unknown_names_are_explained():
    with pytest.raises(ValueError, match=r"no benchmark version 'v9'.*v1\.2\.2"):
        candidates("v9", "banking")
    with pytest.raises(ValueError, match=r"no suite 'shop'.*banking"):
        candidates("v1", "shop")
    assert "v9" not in load_suites._SUITES


def test_the_registry_is_not_handed_out():
    upstream.suites("v1").clear()
    assert set(upstream.suites("v1")) == {"workspace", "travel", "banking", "slack"}
    assert upstream.versions()[0] == "v1"
    assert "v1.2.2" in upstream.versions()


class BankEnvironment(TaskEnvironment):
    note: str
    other: str


def read_note() -> str:
    """Read the note."""
    raise NotImplementedError


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """A suite of the user's own that bears the name of one of AgentDojo's."""
    (tmp_path / "environment.yaml").write_text("note: 'n {first} {second}'\nother: '{third}'\n", encoding="utf-8")
    vectors = "".join(f"{vector}: {{description: d, default: x}}\n" for vector in ("first", "second", "third"))
    (tmp_path / "injection_vectors.yaml").write_text(vectors, encoding="utf-8")
    tool = make_function(read_note)
    tool.name = "read_note"
    suite = TaskSuite("banking", BankEnvironment, [tool], data_path=tmp_path)

    @suite.register_user_task
    class UserTask0(BaseUserTask):
        PROMPT = "Read the note."

        def ground_truth(self, pre_environment):
            tool.run = lambda: pre_environment.note
            return [FunctionCall(function="read_note", args={})]

        def utility(self, model_output, pre_environment, post_environment, strict=True):
            return True

    @suite.register_user_task
    class UserTask1(UserTask0):
        def ground_truth(self, pre_environment):
            return []

    monkeypatch.setitem(load_suites._SUITES, "v-mine", {"banking": suite})
    return suite


def test_custom_suites_are_computed(bank, monkeypatch):
    assert candidates("v-mine", "banking") == {"user_task_0": ("first", "second"), "user_task_1": ()}
    stale = {"user_task_0": ("third",), "user_task_1": ()}
    monkeypatch.setattr(module, "_shipped", lambda: {"v1.2.2": {"banking": stale}})
    assert candidates("v1.2.2", bank) == candidates("v-mine", bank)


def test_a_task_added_later_is_seen(bank):
    before = candidates("v-mine", bank)

    class UserTask7(type(bank.user_tasks["user_task_0"])):
        pass

    bank.register_user_task(UserTask7)
    assert candidates("v-mine", bank) == {**before, "user_task_7": ("first", "second")}
