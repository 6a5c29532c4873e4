"""The finished episode: what is written reads back, and nothing else does."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_episodes import make_episode

from fate_gym import _stored_messages, episode
from fate_gym.episode import Call, Episode, Shown, Trajectory
from fate_gym.errors import FateGymError, RunCorruptError, RunError
from fate_gym.rewards import AxisVerdict, Verdict
from fate_gym.storage import encode_line, parse

RICH = make_episode(
    "attack/t#1",
    repeat=1,
    attack="attack",
    metadata={"split": "dev", "defects": ["x"]},
    verdict=Verdict(
        AxisVerdict.scored(0.25, "rubric", ["call a"], {"harm_low": 0.5}),
        AxisVerdict.failed("grader", KeyError("x")),
        AxisVerdict.inactive("does not apply"),
        AxisVerdict.scored(1.0, "valid-share"),
    ),
    injections={"vector": "text"},
    injection_reached=True,
    messages=[
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "n", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ],
    actions=[{"tool_calls": []}, "Done."],
    calls=(Call(0, "a", "n", "tool_error"),),
    usage={"prompt_tokens": 7, "cost_usd": 0.5},
    shown=Shown(("d",), ("e",), ("look",)),
    trajectory=Trajectory([1], [2, 3], [1, 0], [-0.5, 0.0]),
)


def test_an_episode_reads_back_and_gives_the_same_bytes() -> None:
    line = encode_line(RICH.to_json(tokens=True))
    again = Episode.from_json(parse(line))
    assert again == RICH
    assert encode_line(again.to_json(tokens=True)) == line
    plain = RICH.to_json()
    assert "trajectory" not in plain
    assert Episode.from_json(plain).trajectory is None


def test_fields_keep_their_order_since_files_are_compared_by_bytes() -> None:
    names = "schema key repeat task_id mode suite cluster attack metadata seed status error ended truncated verdict"
    names += " injections injection_reached messages actions calls usage attempts seconds shown"
    assert list(RICH.to_json()) == names.split()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a record."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, entry in entries for place in places(entry, (*path, key))]


RECORD: dict[str, Any] = json.loads(json.dumps(RICH.to_json(tokens=True)))
# What a model or a benchmark says freely is not looked into.
FREE = {"metadata", "actions"}
JUNK: list[Any] = [None, True, -1, 10**400, 1e300, "junk", [], [1], {}, {"junk": {}}]


CHANGES = (st.sampled_from(places(RECORD)), st.sampled_from([*JUNK, "tool", "drop"]))


def changed(path: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    """The record with another value, or without it."""
    record = copy.deepcopy(RECORD)
    container = record
    for key in path[:-1]:
        container = container[key]
    if junk == "drop":
        del container[path[-1]]
    else:
        container[path[-1]] = junk
    return record


def read(record: dict[str, Any]) -> Episode | str:
    try:
        return Episode.from_json(record, "f, line 3")
    except RunError as error:
        return str(error)


@given(*CHANGES)
def test_any_value_replaced_is_read_or_refused_by_the_name_of_its_field(path: tuple[Any, ...], junk: Any) -> None:
    found = read(changed(path, junk))
    if isinstance(found, str):
        assert found.startswith("f, line 3")
        assert str(path[0]) in found
    else:
        assert Episode.from_json(parse(encode_line(found.to_json(tokens=True)))) == found


@given(*CHANGES)
def test_what_seems_right_as_a_whole_is_right_field_by_field(path: tuple[Any, ...], junk: Any) -> None:
    found = read(changed(path, junk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stored_messages, "_is_message", lambda message: False)
        patch.setattr(episode, "_is_call", lambda call: False)
        patch.setattr(episode, "_plain_axis", lambda axis: None)
        assert read(changed(path, junk)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(extra=1), "extra is not a field"),
        (lambda r: r["verdict"].update(kindness={}), "verdict.kindness is not a field"),
        (lambda r: r["verdict"]["utility"].update(value=True), "verdict.utility.value must be a finite number"),
        (lambda r: r["verdict"]["security"]["measures"].update(harm_low=2), "harm_low must lie in"),
        (lambda r: r["usage"].update(cost_usd=-1), "usage.cost_usd must lie between 0"),
        (lambda r: r["usage"].update(cost_usd=1e300), "usage.cost_usd must lie between 0"),
        (lambda r: r.update(status="fine"), "status must be one of ok, "),
        (lambda r: r["calls"][0].update(outcome="fine"), "calls.0.outcome must be one of ok, "),
        (lambda r: r["trajectory"].update(mask=[1]), "trajectory must have a mask"),
        (lambda r: r.update(schema="fate-gym/episode/0x"), "does not name its schema"),
    ],
)
def test_what_no_writer_writes_is_refused(change: Any, message: str) -> None:
    record = copy.deepcopy(RECORD)
    change(record)
    with pytest.raises(RunCorruptError, match=message):
        Episode.from_json(record)


def test_a_newer_episode_asks_for_an_upgrade() -> None:
    with pytest.raises(FateGymError, match="newer fate-gym"):
        Episode.from_json({**RECORD, "schema": "fate-gym/episode/2"})
