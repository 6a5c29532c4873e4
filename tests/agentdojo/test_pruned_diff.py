"""The pruned DeepDiff against the whole one."""

import copy
import datetime
import importlib
import math
import random

import pytest
from agentdojo.types import text_content_block_from_string
from deepdiff import DeepDiff
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.execution import call_tool
from fate_gym.benchmarks.agentdojo.grading import _SkipSame, fast_grading, same, share_same
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

# AgentDojo's suites can only be imported after its registry, which `upstream` imports.
SUITES = "agentdojo.default_suites.v1"
workspace, travel, graders, types = (
    importlib.import_module(f"{SUITES}.{name}")
    for name in ("workspace.task_suite", "travel.task_suite", "workspace.user_tasks", "tools.types")
)
EmailStatus = types.EmailStatus
TEMPLATES = {name: SuiteTemplate(upstream.suites("v1.2.2")[name]) for name in ("workspace", "travel")}
DIFFS = {
    "workspace": (workspace, "WorkspaceDeepDiff", workspace.deepdiff_paths_to_exclude),
    "travel": (travel, "TravelDeepDiff", travel.deepdiff_paths_to_exclude),
}
VALUES = [
    *("text", "other\ntext", "", None, True, False, 1, 1.0, 0, 2.5, math.nan, EmailStatus.sent, "sent", b"bytes"),
    *(
        [],
        ["a"],
        ["a", "b"],
        ["b", "a"],
        [1, "a"],
        [["a"], ["b"]],
        [{"k": 1}],
        {},
        {"k": "v"},
        {"k": 1},
        {1: 1},
        {True: 1.0},
    ),
    *(("a", 1), {"a", "b"}, {"a"}, frozenset({1}), datetime.date(2024, 5, 1), datetime.timedelta(1)),
    datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
    datetime.datetime(2024, 5, 1),  # noqa: DTZ001
]


def load(name, small=False):
    environment = TEMPLATES[name].environment({}).load()
    if small:
        held = [(environment.inbox, "emails"), (environment.calendar, "events")]
        held += [(environment.cloud_drive, "files")] if name == "workspace" else []
        for model, field in held:
            setattr(model, field, dict(list(getattr(model, field).items())[:3]))
            setattr(model, f"initial_{field}", getattr(model, f"initial_{field}")[:3])
        for model, field in (
            [
                *((environment.hotels, "hotel_list"), (environment.restaurants, "restaurant_list")),
                *((environment.car_rental, "company_list"), (environment.flights, "flight_list")),
            ]
            if name == "travel"
            else []
        ):
            setattr(model, field, getattr(model, field)[:2])
    return environment


def both(name, pre, post):
    module, attribute, exclude = DIFFS[name]
    whole = DeepDiff(pre, post, exclude_paths=exclude)
    with fast_grading():
        pruned = getattr(module, attribute)(pre, post)
    return pruned, whole


def plain(diff):
    """The diff's keys and values with their order, NaN made comparable."""
    return repr(
        {key: bare(list(value.items()) if isinstance(value, dict) else list(value)) for key, value in diff.items()}
    )


def bare(value):
    """The value without models, whose own repr computes fields that fail on what a tool would not let through."""
    if isinstance(value, BaseModel):
        return type(value).__name__, bare(value.__dict__)
    if isinstance(value, dict):
        return {key: bare(inner) for key, inner in value.items()}
    if isinstance(value, set):  # A copy of a set may list equal members in another order.
        return type(value).__name__, sorted(map(repr, value))
    return type(value)(map(bare, value)) if isinstance(value, list | tuple) else value


def assert_equal_diffs(name, pre, post):
    pruned, whole = both(name, pre, post)
    assert type(pruned) is DeepDiff
    assert set(pruned) == set(whole)
    assert plain(pruned) == plain(whole)
    return whole


def places(data, found):
    """Every model, list and dictionary of an environment."""
    if isinstance(data, BaseModel):
        found.append(data)
        data = data.__dict__
    elif isinstance(data, dict | list):
        found.append(data)
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        places(value, found)
    return found


def perturb(environment, rng):
    """Change something anywhere, with whatever value, as no tool's validation would let through."""
    if holds_itself(environment):
        return  # An earlier change made it endless.
    place = rng.choice(places(environment, []))
    value = rng.choice(
        # Copies, since a later change may be one inside of the value.
        [
            *copy.deepcopy(VALUES),
            rng.choice(places(environment, [])),
            rng.choice(places(load("travel", small=True), [])),
        ]
    )
    if isinstance(place, BaseModel):
        place.__dict__[rng.choice(list(place.__dict__))] = value
    elif isinstance(place, list):
        index = rng.randrange(len(place) + 1)
        change = rng.choice(["insert", "set", "remove", "swap", "double"])
        if change == "insert" or not place:
            place.insert(index, value)
        elif change == "set":
            place[index - 1] = value
        elif change == "remove":
            del place[index - 1]
        elif change == "swap":
            place.reverse()
        else:
            place.append(place[index - 1])
    elif place and rng.random() < 0.6:
        key = rng.choice(list(place))
        if rng.random() < 0.5:
            place[key] = value
        else:
            del place[key]
    else:
        place[rng.choice(["new", "__private", "it's", 'a"b', 7, None])] = value


def holds_itself(data, above=()):
    if id(data) in above:
        return True
    inner = data.__dict__ if isinstance(data, BaseModel) else data
    values = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list | tuple) else ()
    return any(holds_itself(value, (*above, id(data))) for value in values)


def two_states(name, seed, changes):
    """The first of the changes is made to the first state, all others to the second."""
    rng = random.Random(seed)
    pre, post = load(name, small=True), load(name, small=True)
    for environment in (pre, *[post] * 4)[:changes]:
        perturb(environment, rng)
    return pre, post


@pytest.mark.no_cover
@given(st.sampled_from(["workspace", "travel"]), st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=200)
def test_any_change_gives_equal_diffs(name, seed, changes):
    pre, post = two_states(name, seed, changes)
    if not holds_itself(pre) and not holds_itself(post):  # its repr would not end
        assert_equal_diffs(name, pre, post)


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=12)
def test_any_change_to_a_whole_environment(seed):
    pre, post = load("workspace"), load("workspace")
    perturb(post, random.Random(seed))
    if not holds_itself(post):
        assert_equal_diffs("workspace", pre, post)


def notes(model):
    return model.__pydantic_fields_set__, model.__pydantic_extra__, model.__pydantic_private__


def assert_told_apart_by_nothing(left, right):
    """As written, since `==` takes 1, 1.0 and True for equal, and knows neither signs of zeros nor orders of keys."""
    assert repr(bare(left)) == repr(bare(right))
    models = [[notes(one) for one in places(value, []) if isinstance(one, BaseModel)] for value in (left, right)]
    assert models[0] == models[1]


@pytest.mark.no_cover
@given(st.sampled_from(["workspace", "travel"]), st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=200)
def test_sharing_what_is_the_same_changes_neither_of_two_states(name, seed, changes):
    pre, post = two_states(name, seed, changes)
    if holds_itself(pre) or holds_itself(post):  # its repr would not end
        return
    before, after = copy.deepcopy((pre, post))
    shared = share_same(before, after)
    assert_told_apart_by_nothing(pre, before)
    assert_told_apart_by_nothing(post, after)
    assert shared is after or (shared is before and same(pre, post))
    assert changes or shared is before


@given(st.sampled_from(VALUES), st.sampled_from(VALUES))
@settings(max_examples=300)
def test_only_what_nothing_tells_apart_is_shared(left, right):
    for one, other in ((left, right), ([left], [right]), ({"k": left}, {"k": right})):
        one, other = copy.deepcopy((one, other))
        if share_same(one, other) is one:
            assert repr(one) == repr(other)


def test_what_agrees_in_its_fields_alone_is_not_shared():
    pre, post = load("workspace", small=True), load("workspace", small=True)
    first, second = list(post.inbox.emails.values())[:2]
    first.__pydantic_fields_set__.discard("subject")
    second.timestamp = second.timestamp.replace(fold=1)
    post.cloud_drive.files = dict(reversed(post.cloud_drive.files.items()))
    assert pre == post
    assert same(pre, post)
    share_same(pre, post)
    shared = [pre.inbox.emails[key] is email for key, email in post.inbox.emails.items()]
    assert shared == [False, False, True]
    assert list(post.cloud_drive.files) == list(pre.cloud_drive.files)[::-1]
    assert all(pre.cloud_drive.files[key] is file for key, file in post.cloud_drive.files.items())
    assert post.calendar is pre.calendar


@given(st.sampled_from(VALUES), st.sampled_from(VALUES))
@settings(max_examples=300)
def test_same_means_nothing_to_report(left, right):
    for one, other in ((left, right), ([left], [right]), ({"k": left}, {"k": right})):
        if same(one, other):
            assert not DeepDiff(one, other)


def test_what_equality_alone_would_miss():
    pre, post = load("workspace", small=True), load("workspace", small=True)
    file, email = next(iter(post.cloud_drive.files.values())), next(iter(post.inbox.emails.values()))
    file.size, email.read, email.status = float(file.size), int(email.read), str(email.status)
    assert pre == post
    assert len(assert_equal_diffs("workspace", pre, post)["type_changes"]) == 3


def test_an_environment_that_holds_itself():
    pre, post = load("workspace", small=True), load("workspace", small=True)
    for environment in (pre, post):
        environment.inbox.__dict__["contact_list"] = [environment.inbox]
    post.calendar.account_email = "changed"
    pruned, whole = both("workspace", pre, post)
    assert set(pruned) == set(whole) == {"values_changed"}
    assert pruned["values_changed"] == whole["values_changed"]


def test_pruned_inside_only(monkeypatch):
    pre, post = load("workspace", small=True), load("workspace", small=True)
    with fast_grading():
        assert graders.WorkspaceDeepDiff is workspace.WorkspaceDeepDiff
    assert graders.WorkspaceDeepDiff.func is DeepDiff
    asked = []
    monkeypatch.setattr(_SkipSame, "match", lambda self, level: asked.append(level))
    assert not graders.WorkspaceDeepDiff(pre, post)
    assert not asked
    with fast_grading():
        assert not graders.WorkspaceDeepDiff(pre, post, verbose_level=2)
        assert not asked
        with fast_grading():
            pass
        assert not graders.WorkspaceDeepDiff(pre, post)
    assert asked


def end_states(name, pairs):
    suite = upstream.suites("v1.2.2")[name]
    tools = {tool.name: tool for tool in suite.tools}
    for user_task, injection_task in pairs(suite):
        environment = load(name)
        for task in (user_task, injection_task):
            for call in task.ground_truth(environment):
                call_tool(tools, environment, call.function, call.args)
        yield suite, user_task, injection_task, environment


def some(suite):
    injections = [task for task in suite.injection_tasks.values() if task.ground_truth(load(suite.name))]
    users = list(suite.user_tasks.values())[::4]
    return [(user, injections[index % len(injections)]) for index, user in enumerate(users)]


def every(suite):
    return [(user, injection) for user in suite.user_tasks.values() for injection in suite.injection_tasks.values()]


def check_end_states(name, pairs):
    changed = 0
    for suite, user_task, injection_task, environment in end_states(name, pairs):
        pre = load(name)
        changed += bool(assert_equal_diffs(name, pre, environment))
        before, after = copy.deepcopy((pre, environment))
        share_same(before, after)
        assert_told_apart_by_nothing(environment, after)
        for task in (user_task, injection_task):
            output = [text_content_block_from_string(task.GROUND_TRUTH_OUTPUT)]
            official = suite._check_task_result(task, output, pre, environment, [])
            with fast_grading():
                assert suite._check_task_result(task, output, pre, environment, []) == official
                assert suite._check_task_result(task, output, before, after, []) == official
    assert changed


@pytest.mark.no_cover
@pytest.mark.parametrize("name", ["workspace", "travel"])
def test_real_end_states(name):
    check_end_states(name, some)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["workspace", "travel"])
def test_all_real_end_states(name):
    check_end_states(name, every)
