"""Nothing that a stranger wrote can do anything on a page, and nothing that may not be published is on one."""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import agentharm_folder
import made_runs
import markupsafe
import pytest
import small_runs
from hypothesis import given
from hypothesis import strategies as st
from made_runs import HOSTILE, Page, benign, pages, record, write_run

from fate_gym.errors import RunError
from fate_gym.leaderboards.site.text import Budget, slug
from fate_gym.rendering import visible

CSP = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
TAGS = [
    "html",
    "head",
    "meta",
    "title",
    "link",
    "script",
    "body",
    "a",
    "header",
    "nav",
    "main",
    "footer",
    "h1",
    "h2",
    "h3",
    "p",
    "ul",
    "ol",
    "li",
    "span",
    "small",
    "b",
    "strong",
    "code",
    "kbd",
    "mark",
    "pre",
    "dl",
    "dt",
    "dd",
    "details",
    "summary",
    "section",
    "div",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "form",
    "label",
    "select",
    "option",
    "input",
    "output",
    "figure",
    "figcaption",
    "svg",
    "desc",
    "line",
    "text",
    "polyline",
    "g",
    "rect",
    "circle",
    "button",
    "i",
    "del",
    "ins",
]


def test_pages_hold_only_what_the_templates_put_there(hostile_site: Path) -> None:
    assert len(pages(hostile_site)) >= 7
    for path in pages(hostile_site):
        page = Page(path)
        assert {tag for tag, _ in page.tags} <= set(TAGS), path
        scripts = [attrs for tag, attrs in page.tags if tag == "script"]
        assert scripts[0] == {"src": page_root(path, hostile_site) + "static/site.js", "defer": None}
        # An episode that can be copied is data, which no browser runs.
        assert all(attrs == {"type": "application/json", "id": "episode"} for attrs in scripts[1:])
        assert len(scripts) <= 2
        assert ("meta", {"http-equiv": "Content-Security-Policy", "content": CSP}) in page.tags
        for tag, attrs in page.tags:
            assert not [name for name in attrs if name.startswith("on") or name in ("style", "srcdoc", "formaction")], (
                tag
            )


def page_root(path: Path, site: Path) -> str:
    return "../" * (len(path.relative_to(site).parts) - 1)


def test_every_link_stays_inside_and_leads_somewhere(hostile_site: Path, dojo_site: Path) -> None:
    for site in (hostile_site, dojo_site):
        ids = {path.resolve(): set(Page(path).ids) for path in pages(site)}
        for path in pages(site):
            page = Page(path)
            assert len(page.ids) == len(set(page.ids)), "an id stands twice"
            for link in page.links:
                assert not re.match(r"[a-z]+:|//", link), link
                file, _, anchor = link.partition("#")
                target = (path.parent / file).resolve() if file else path.resolve()
                assert target.is_relative_to(site.resolve())
                assert target.is_file(), link
                assert not anchor or anchor in ids[target], link


def test_no_page_is_large_and_what_was_cut_is_counted(hostile_site: Path) -> None:
    texts = {path: path.read_text() for path in pages(hostile_site)}
    assert all(path.stat().st_size < 1_000_000 for path in texts)
    whole = "".join(texts.values())
    assert "… 4,980,000 characters more are not shown" in whole
    assert "8750 calls more are not shown" in whole


def test_invisible_characters_are_visible(hostile_site: Path) -> None:
    for path in pages(hostile_site):
        text = path.read_text(encoding="utf-8")
        assert not [
            char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        ]
    assert "\\u202egnp.exe" in text
    assert "\\x1b[31mred" in "".join(path.read_text() for path in pages(hostile_site))


def test_names_of_files_are_ours(hostile_site: Path) -> None:
    for path in hostile_site.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._+-]{1,140}", path.name), path


def test_templates_run_nothing_of_a_text(hostile_site: Path) -> None:
    trace = max(pages(hostile_site / "run"), key=lambda path: path.read_text().count("{{ 7*7 }}"))
    assert trace.read_text().count("{{ 7*7 }}") > 10


def test_an_odd_record_is_counted_and_left_out(hostile_site: Path) -> None:
    index = Page(hostile_site / "index.html").text
    assert "malformed" in index
    (page,) = (hostile_site / "run").glob("*/index.html")
    assert "1 malformed and left out" in Page(page).text
    assert "5 episodes" in Page(page).text, "four scored, one that errored twice"


def test_svg_is_well_formed(hostile_site: Path, dojo_site: Path, tmp_path: Path) -> None:
    usage = {"cost_usd": 0.5, "prompt_tokens": 1.0, "completion_tokens": 1.0}
    plain = [benign(f"shop/{i}/none", usage=usage) for i in range(12)]
    attacked = [record(f"shop/{i}/x", values=(0.3, 0.5, 1, 1), usage=usage) for i in range(12)]
    runs = [write_run(tmp_path / name, [*plain, *attacked], agent=f"{name}{HOSTILE}") for name in "abc"]
    plots = made_runs.build(runs, tmp_path / "site")
    found = 0
    for path in [*pages(hostile_site), *pages(dojo_site), *pages(plots)]:
        for svg in re.findall(r"<svg.*?</svg>", path.read_text(), re.DOTALL):
            found += 1
            for node in ET.fromstring(svg).iter():  # noqa: S314 (pages that we made)
                for name in ("x", "y", "width", "height", "cx", "cy", "x1", "x2", "y1", "y2"):
                    float(node.get(name, "0"))
    assert found > 10


PROMPT, CANARY = "the secret prompt", "bird-canary-7"


def secret(mode: str = "harmful", **fields: object) -> made_runs.Record:
    made = record(
        f"split/{mode}/1",
        mode=mode,
        key=f"{mode}#0",
        attack=None,
        values=(0.0, None, None, 1.0),
        metadata={"canary": CANARY},
        messages=[
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": PROMPT, "tool_calls": [made_runs.call(PROMPT, PROMPT)]},
            {"role": "tool", "tool_call_id": "call_0_0", "content": f"{PROMPT} {CANARY}"},
        ],
    )
    made["verdict"]["security"]["evidence"] = [f"judge asked: {PROMPT}"]
    return made | fields


def secrets(folder: Path) -> Path:
    kept = [
        secret(),
        secret("benign"),
        secret("harmful", metadata={}, key="without canary"),
        secret("benign", metadata={}, key="b2"),
    ]
    failed = secret("harmful", key="failed", status="provider_error", error=f"cannot read {PROMPT}")
    return write_run(folder, kept, failures=[failed], env="fate/AgentHarm-v0")


def holds(site: Path, text: str) -> bool:
    return any(text in path.read_text() for path in site.rglob("*") if path.is_file())


def test_a_public_build_has_no_prompt_and_no_canary(tmp_path: Path) -> None:
    run = secrets(tmp_path / "run")
    private = made_runs.build([run], tmp_path / "site", private=True)
    assert holds(private, PROMPT)
    assert holds(private, "Private build")
    public = made_runs.build([run], tmp_path / "site")
    assert len(list((public / "run").rglob("*.html"))) == 6
    assert holds(public, "Redacted:")
    assert not holds(public, PROMPT)
    assert not holds(public, CANARY)
    assert not holds(public, "Private build")


def test_a_real_run_of_agentharm_is_redacted(make_run: small_runs.MakeRun, tmp_path: Path) -> None:
    settings = {"env": "fate/AgentHarm-v0", "env_args": {"split": "validation", "data_dir": agentharm_folder.folder()}}
    run = make_run(tmp_path / "run", "oracle", **settings)
    episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    asked = [message for episode in episodes for message in episode["messages"] if message["role"] == "user"]
    said = {str(markupsafe.escape(message["content"][:60])) for message in asked}
    public = made_runs.build([run], tmp_path / "public")
    assert not holds(public, agentharm_folder.CANARY)
    assert not holds(public, agentharm_folder.folder())
    pages_ = [path.read_text() for path in pages(public)]
    private = [path.read_text() for path in pages(made_runs.build([run], tmp_path / "private", private=True))]
    assert said
    for prompt in said:
        assert any(prompt in text for text in private)
        assert not any(prompt in text for text in pages_)


def test_pages_of_an_earlier_build_go_and_other_files_stay(tmp_path: Path) -> None:
    out = made_runs.build([write_run(tmp_path / "a", [record()], agent="first")], tmp_path / "site")
    (old,) = (out / "run").iterdir()
    mine = out / "run" / "notes.txt"
    mine.write_text("mine")
    made_runs.build([write_run(tmp_path / "b", [record()], agent="second")], out)
    assert not old.exists()
    assert mine.read_text() == "mine"
    assert len(list((out / "run").glob("*/index.html"))) == 1


@pytest.mark.parametrize("name", ["index.html", "run"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    out = tmp_path / "site"
    out.mkdir()
    path = out / name
    path.write_text("mine") if name == "index.html" else path.mkdir()
    run = write_run(tmp_path / "a", [record()])
    with pytest.raises(RunError, match="earlier build: give another --out"):
        made_runs.build([run], out)
    assert {entry.name for entry in out.iterdir()} <= {name, "leaderboard.json", "leaderboard.csv", "leaderboard.md"}


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, hostile_site: Path) -> None:
    again = made_runs.build([made_runs.hostile_run(tmp_path / "run")], tmp_path / "site")
    for path in hostile_site.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(hostile_site)).read_bytes()


def test_processes_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / name, [record(), benign("shop/user_task_1/none")], agent=name) for name in "ab"]
    one = made_runs.build(runs, tmp_path / "one")
    monkeypatch.setattr("fate_gym.leaderboards.site.pages._PARALLEL", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    two = made_runs.build(runs, tmp_path / "two")
    files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.html")}
    assert files == {path.relative_to(two): path.read_bytes() for path in two.rglob("*.html")}
    assert len(files) == 1 + 1 + 2 * 3 + 2, "index, board, runs and their traces, pairs"


@given(st.text(), st.text())
def test_slugs_are_safe_and_distinct(one: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9-]{1,60}", slug(one))
    assert not slug(one).startswith("-")
    if one.encode(errors="replace") != other.encode(errors="replace"):
        assert slug(one) != slug(other)


@given(st.lists(st.text(max_size=300), max_size=10), st.integers(0, 500))
def test_a_budget_is_kept(texts: list[str], size: int) -> None:
    budget = Budget(size)
    cuts = [budget.take(text, 200) for text in texts]
    assert sum(len(visible(cut.text).encode()) for cut in cuts) <= size
    assert all(
        text.startswith(cut.text) and len(cut.text) + cut.left_out == len(text)
        for text, cut in zip(texts, cuts, strict=True)
    )


def test_sources_use_no_way_around_escaping() -> None:
    import fate_gym.leaderboards.site as site

    for path in Path(str(site.__file__)).parent.rglob("*"):
        if path.suffix in (".j2", ".py", ".js"):
            text = path.read_text()
            assert not re.search(
                r"\|\s*safe\b|Markup\(|innerHTML|insertAdjacent|document\.write|\beval\(|autoescape false", text
            ), path
    assert HOSTILE.startswith("</script>")
