"""Addresses: people read them, no name of a stranger bends them, and no two pages share one on any file system."""

from __future__ import annotations

import re
from pathlib import Path

import made_runs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import HOSTILE, record, write_run

from fate_gym.episode import Episode
from fate_gym.leaderboards import load_runs
from fate_gym.leaderboards.site.addresses import apart, page_of, part


def episode(task: str, **fields: object) -> Episode:
    return Episode.from_json(record(task, **fields))


@pytest.mark.parametrize(
    ("fields", "page"),
    [
        ({}, "attack/banking/user_task_3/injection_task_5.html"),
        ({"attack": None}, "banking/user_task_3/injection_task_5.html"),
        ({"repeat": 2}, "attack/banking/user_task_3/injection_task_5-repeat-2.html"),
    ],
)
def test_an_address_is_read_like_the_task(fields: dict[str, object], page: str) -> None:
    assert page_of(episode("banking/user_task_3/injection_task_5", **fields)) == page


@pytest.mark.parametrize(
    "name", ["", ".", "..", "con", "NUL.txt", "index", "a.html", "-rf", ".hidden", "a.", "a b", "ä", "x" * 61, HOSTILE]
)
def test_a_name_that_some_file_system_minds_becomes_a_slug(name: str) -> None:
    assert part(name) != name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}", part(name))


names = st.one_of(st.text(max_size=70), st.sampled_from(["a", "A", "..", "index", "a.html", "con", "/", "a/b", "A/B"]))


@given(st.lists(st.tuples(names, st.one_of(st.none(), names), st.integers(0, 2)), max_size=8))
def test_pages_stay_in_their_folder_and_apart(tasks: list[tuple[str, str | None, int]]) -> None:
    made = [episode(task, attack=attack, repeat=repeat) for task, attack, repeat in tasks]
    pages = apart((str(i), page_of(one)) for i, one in enumerate(made))
    assert len({page.lower() for page in pages.values()}) == len(tasks), "also where case tells nothing apart"
    folders = {"/".join(page.lower().split("/")[:i]) for page in pages.values() for i in range(1, page.count("/") + 1)}
    assert not folders & {page.lower() for page in pages.values()}, "no page is where another has its folder"
    for page in pages.values():
        assert len(page) <= 250
        assert page != "index.html"
        assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", piece) for piece in page.split("/"))


def test_addresses_do_not_depend_on_the_order_of_episodes() -> None:
    listed = [("one", "a/B.html"), ("two", "A/b.html"), ("three", "c.html")]
    assert apart(listed) == apart(reversed(listed))
    assert apart(listed)["three"] == "c.html"


def test_runs_are_named_by_agent_and_defences_and_then_by_folder(tmp_path: Path) -> None:
    made = [
        write_run(tmp_path / "first" / "x", [record()], agent="openai:gpt-4o"),
        write_run(tmp_path / "second" / "openai-gpt-4o", [record()], agent="openai:gpt-4o"),
        write_run(tmp_path / "second" / "more", [record()], agent="openai:gpt-4o", defences=["spotlighting"]),
        write_run(tmp_path / "third" / "OPENAI-GPT-4o", [record()], agent="OPENAI:GPT-4o"),
        write_run(tmp_path / "fourth", [record()], agent=HOSTILE),
    ]
    ids = [run.run_id for run in load_runs(made)]
    assert ids[:3] == ["openai-gpt-4o", "openai-gpt-4o-second", "openai-gpt-4o-spotlighting"]
    assert len({name.lower() for name in ids}) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,130}", name) for name in ids)


def test_a_page_stands_where_its_address_says(tmp_path: Path) -> None:
    names = ("shop/Ä/x", "shop/t/X", "shop/t/x")
    tasks = [record(name, key=f"{i}", values=(0.0, 1.0, 1.0, 1.0)) for i, name in enumerate(names)]
    site = made_runs.build([write_run(tmp_path / "run", tasks)], tmp_path / "site")
    found = sorted(str(path.relative_to(site / "run" / "made-up")) for path in (site / "run").rglob("*.html"))
    assert len(found) == 4
    assert len({name.lower() for name in found}) == 4
    made_runs.build([write_run(tmp_path / "other", [record()])], site)
    left = sorted(path.name for path in (site / "run" / "made-up").iterdir())
    assert left == ["attack", "index.html"], "nothing of the earlier build"
    assert len(list((site / "run").rglob("*.html"))) == 2
