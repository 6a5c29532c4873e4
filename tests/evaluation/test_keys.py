"""Keys in few bytes: as a set and as a list they hold what plain ones hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fate_gym.evaluation.intervals import rate
from fate_gym.evaluation.keys import KeyList, Keys
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.evaluation.results import Results
from fate_gym.evaluation.run import Episodes, Places
from fate_gym.storage import Place

# Numbers that are repeats, that look like one and are none, and that are none.
NUMBERS = st.sampled_from(["#0", "#1", "#10", "#999", "#1000", "#01", "#-1", "#1 ", "##2", "#٣", "#", "", "#0\n"])
KEYS = st.builds("".join, st.tuples(st.sampled_from(["a", "a#1", "user_task_2", "user_task_10", "", "\n"]), NUMBERS))


@given(st.lists(KEYS), st.lists(KEYS))
def test_a_set_of_keys_is_a_set(held: list[str], others: list[str]) -> None:
    keys = Keys()
    assert [keys.add(key) for key in held] == [key not in held[:i] for i, key in enumerate(held)]
    assert keys == set(held)
    assert len(keys) == len(set(held))
    assert sorted(keys) == sorted(set(held))
    assert [key in keys for key in others] == [key in held for key in others]
    assert 1 not in keys


def in_order(key: str) -> tuple[list[tuple[str, int]], str, int]:
    found = re.fullmatch(r"(.*)#(0|[1-9][0-9]{0,2})", key, re.DOTALL)
    name, repeat = (key, -1) if found is None else (found[1], int(found[2]))
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", name)
    return [(text, int(number or 0)) for text, number in parts], name, repeat


@given(st.lists(KEYS), st.lists(KEYS, unique=True))
@example(["a#1#0", "a#01"], [])
def test_a_list_of_keys_is_a_list(held: list[str], others: list[str]) -> None:
    keys, rest = KeyList(), KeyList()
    for key in held:
        keys.append(key)
    for key in others:
        rest.append(key)
    assert list(keys) == held
    last = {key: i for i, key in enumerate(held)}
    order = keys.in_order().tolist()
    assert sorted(order) == sorted(last.values())
    listed = list(keys.at(order))
    assert [in_order(key) for key in listed] == sorted(map(in_order, last))
    assert keys.indices(reversed(held)) == [last[key] for key in reversed(held)]
    for key in set(others) - set(held):
        with pytest.raises(KeyError, match=re.escape(repr(key))):
            keys.indices([*held, key])
    mine, theirs = keys.shared(rest)
    assert list(keys.at(mine.tolist())) == list(rest.at(theirs.tolist()))
    assert sorted(keys.at(mine.tolist())) == sorted(set(held) & set(others))


def test_a_number_beyond_all_repeats_takes_no_more_than_its_text() -> None:
    keys = Keys(f"a#{10**i}" for i in range(100))
    assert max(bits.bit_length() for bits in keys._bits.values()) <= 1024


def test_keys_of_repeats_are_those_keys_in_order() -> None:
    repeats = [("a", 1002), ("b#1", 1), ("c", 0)]
    keys = Keys.of_repeats(repeats)
    assert list(keys) == [f"{name}#{number}" for name, n in repeats for number in range(n)]
    assert len(keys) == 1003
    assert keys == Keys(list(keys)) == Keys(keys)
    assert list(keys.minus(Keys(["a#0", "a#1001", "x"]))) == [*list(keys)[1:1001], "b#1#0"]
    assert len(keys.minus(keys)) == 0


def test_episodes_leave_out_keys_and_find_those_that_are_left(tmp_path: Path) -> None:
    places = Places()
    for line, key in enumerate(["a#1", "a#0", "b#0", "a#1"], start=1):
        places.note(key, Place(line, 0, 0))
    episodes = Episodes(tmp_path / "none", places, Results(), without=Keys(["b#0"]))
    assert episodes.keys == ("a#0", "a#1")
    with pytest.raises(KeyError):
        episodes.of("b#0")
    with pytest.raises(KeyError):
        episodes.of("c#0")


def test_a_plan_finds_its_items_by_key_and_makes_the_same_each_time() -> None:
    plan = Plan([TaskSet("toy/Parcels-v0", repeats=12)], seed=3)
    items = list(plan.items)
    assert len(plan.items) == len(items) == len({item.key for item in items})
    assert [item.key for item in items] == list(plan.items.keys)
    assert [plan.find(item.key) for item in items] == items
    assert [plan.items[i] for i in range(-len(items), 0)] == items
    assert list(plan.items[2:5]) == items[2:5]
    assert list(plan.items.without(Keys([items[0].key, items[5].key]))) == items[1:5] + items[6:]
    with pytest.raises(IndexError):
        plan.items[len(items)]
    name = items[0].key.removesuffix("#0")
    for other in ("", "#0", name, f"{name}#12", f"{name}#01", f"{name}#-1", f"{name}#²", f"{name}#{'9' * 5000}"):
        assert plan.find(other) is None


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.25, 0.9]), st.sampled_from("abcd"), st.integers(1, 9))))
def test_counted_values_have_the_rate_of_repeated_ones(counted: list[tuple[float, str, int]]) -> None:
    values, clusters, counts = zip(*counted, strict=True) if counted else ((), (), ())
    repeated = [(value, cluster) for value, cluster, count in counted for _ in range(count)]
    one = rate(values, clusters, counts)
    other = rate([value for value, _ in repeated], [cluster for _, cluster in repeated])
    assert (one.n, one.method) == (other.n, other.method)
    for bound in ("value", "low", "high"):
        assert getattr(one, bound) == pytest.approx(getattr(other, bound), abs=1e-12)
