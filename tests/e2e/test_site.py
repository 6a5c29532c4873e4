"""The site in a real browser, opened from disk: it works, and whatever strangers wrote stays text.

The browser is Debian's Chromium, or what FATE_GYM_CHROMIUM names; CI sets that, so that there nothing is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest
from made_runs import hostile_run, pages
from small_runs import edit_json, make_run

from fate_gym.cli import main
from fate_gym.episode import Episode

CHROMIUM = Path(os.environ.get("FATE_GYM_CHROMIUM", "/usr/bin/chromium"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "FATE_GYM_CHROMIUM" not in os.environ and not CHROMIUM.exists(),
        reason=f"there is no {CHROMIUM}: install chromium, or set FATE_GYM_CHROMIUM to a browser",
    ),
]

BANKING: dict[str, Any] = {"attack": (None, "important_instructions"), "env_args": {"suite": ["banking"]}}
TASK = "important_instructions/banking/user_task_3/injection_task_5"
TRACE = f"run/gullible/{TASK}.html"
WIDTHS = [390, 820, 1440]
ASR = 5
"""The place of its column."""

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(site: Path, hostile: Path, single: tuple[Path, Path]) -> Iterator[Any]:
    """The one browser; sites are made before, since it keeps an event loop in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails its test for an error, a message in the console, a dialog or a request that leaves the disk."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    opened.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda request: request.url.startswith("file://") or wrong.append(f"request: {request.url}"))
    opened.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    yield opened
    context.close()
    assert not wrong


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All of banking by four scripted agents, and by two that pass for models."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / agent, agent, **BANKING) for agent in ("gullible", "noop", "refuser", "random")]
    for scripted, name in (("noop", "openai:idle"), ("random", "openai:a-model-with-rather-a-long-name-2026-11-26")):
        run = Path(shutil.copytree(folder / scripted, folder / f"model-{scripted}"))
        edit_json(run / "manifest.json", lambda manifest, name=name: manifest["config"].update(agent=name))
        runs.append(run)
    return runs


@pytest.fixture(scope="module")
def site(run_folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_runs.build(run_folders, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def single(run_folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The board and a trace of the same runs, each as one file."""
    folder = tmp_path_factory.mktemp("single")
    board, trace = folder / "board.html", folder / "trace.html"
    assert main(["leaderboard", "build", *map(str, run_folders), "--single-file", str(board)]) == 0
    assert main(["show", str(run_folders[0]), TASK, "--single-file", str(trace)]) == 0
    return board, trace


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return made_runs.build([hostile_run(folder / "run")], folder / "site")


def board_of(site: Path) -> str:
    return next(path for path in (site / "board").glob("*.html") if "plots" not in path.name).as_uri()


def of_each_kind(site: Path) -> list[str]:
    """Addresses of one page of each kind."""
    side = next(path for path in sorted((site / "compare").glob("*/**/*.html")) if path.name != "index.html")
    names = ("index.html", "run/gullible/index.html", "run/random/index.html", TRACE)
    kinds = [site / name for name in names]
    kinds += [*(site / "compare").glob("*.html"), next((site / "compare").glob("*/index.html")), side]
    return [board_of(site), *(path.as_uri() for path in kinds)]


def shown(page: Any, column: int = 0) -> list[str]:
    """The names of the rows that are to be seen, by their links or their texts."""
    cells = f"#rows tbody tr:not([hidden]) > :nth-child({column + 1})"
    return [str(text) for text in page.locator(cells).evaluate_all("all => all.map(c => c.dataset.v || c.innerText)")]


def test_every_page_opens_and_every_link_leads_somewhere(page: Any, site: Path) -> None:
    todo, seen = [(site / "index.html").as_uri()], set[str]()
    while todo and len(seen) < 40:
        here = todo.pop(0)
        seen.add(here)
        assert page.goto(here) is not None
        assert page.locator("h1").count() == 1
        links = page.eval_on_selector_all(
            "a[href]", "all => all.map(a => new URL(a.getAttribute('href'), a.baseURI).href)"
        )
        for link in links:
            address = link.partition("#")[0]
            assert Path(address.removeprefix("file://")).is_file(), link
            if address.endswith(".html") and address not in seen and address not in todo:
                todo.append(address)
    assert len(seen) == 40


def test_the_style_sheet_and_the_script_work_under_the_policy(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    assert page.evaluate("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"
    assert page.locator("thead button").count() > 5


def test_tables_sort_both_ways_and_back_by_mouse_and_by_key(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    original = shown(page)
    head = page.locator("#rows thead th", has_text="ASR")
    column = page.locator("#rows thead th").all_inner_texts().index(head.inner_text())
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending", "the best first"
    rates = [float(value) for value in shown(page, column)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in shown(page, column)] == rates[::-1]
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert shown(page) == original
    # What has no value stands last, whichever way.
    page.locator("#rows thead th", has_text="agent").locator("button").click()
    assert shown(page) == sorted(original)


def test_tables_filter(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    assert set(shown(page, 2)) == {"all"}, "all suites together stand there first"
    page.select_option("select[data-key=suite]", "")
    both = page.locator("#rows tbody tr:not([hidden])").count()
    assert both == page.locator("#rows tbody tr").count() == 12
    page.select_option("select[data-key=agent]", "noop")
    assert set(shown(page)) == {"noop"}
    page.select_option("select[data-key=agent]", "")
    page.fill("input[type=search]", "BANKING")
    assert 0 < page.locator("#rows tbody tr:not([hidden])").count() < both
    assert "of 12 rows" in page.locator("output").inner_text()
    page.fill("input[type=search]", "nothing has this")
    assert shown(page) == []


def test_more_columns_on_demand(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    head = page.locator("#rows th.minor", has_text="reached")
    assert not head.is_visible()
    page.check("input.more")
    assert head.is_visible()


def first_failure(page: Any, site: Path) -> None:
    page.goto((site / "run/gullible/index.html").as_uri())
    page.locator("details.group[open] a").first.click()
    page.wait_for_selector(".became")


def test_a_trace_tells_first_what_was_wanted_and_what_happened(page: Any, site: Path) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    first_failure(page, site)
    assert "hijacked" in page.locator(".became").inner_text()
    told = page.locator(".gist").bounding_box()
    assert told["y"] + told["height"] < 900, "above the fold"
    assert page.locator(".gist dt").all_inner_texts() == ["The user wants", "The attacker wants", "What happened"]
    assert "did what the attacker wanted" in page.locator(".gist .bad").inner_text()
    assert page.locator("details.injected mark").first.is_visible()
    assert page.locator("details.obeyed .chip.bad").all_inner_texts() == ["fulfils the injection"]
    assert page.locator(".diff ins").first.is_visible()
    for link in (page.locator(".gist .bad a").first, page.locator(".verdict a").first):
        anchor = str(link.get_attribute("href"))
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
        link.click()
        page.wait_for_function("id => document.querySelector(id).open", arg=anchor)
        page.evaluate("history.replaceState(null, '', location.pathname)")


def test_nothing_of_a_trace_scrolls_inside_the_page(page: Any, site: Path) -> None:
    first_failure(page, site)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    inner = "e => /auto|scroll/.test(getComputedStyle(e).overflowY) && e.scrollHeight > e.clientHeight + 1"
    assert page.evaluate(f"[...document.querySelectorAll('main *')].filter({inner}).map(e => e.className)") == []


def test_an_episode_is_copied_as_json_that_can_be_read_again(page: Any, site: Path) -> None:
    first_failure(page, site)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.get_by_role("button", name="Copy the episode as JSON").click()
    page.wait_for_function("window.copied")
    episode = Episode.from_json(json.loads(page.evaluate("window.copied")))
    assert episode.task_id in page.locator("h1").inner_text()
    assert page.get_by_role("button", name="copied").is_visible()


def test_filters_and_order_stand_in_the_address(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    page.select_option("select[data-key=suite]", "")
    page.select_option("select[data-key=agent]", label="random")
    page.locator("#rows thead th[data-name=ASR] button").click()
    address = page.url
    assert "agent=random" in address
    assert "sort=ASR+ascending" in address
    chosen = shown(page)
    page.goto((site / "index.html").as_uri())
    page.goto(address)
    assert shown(page) == chosen
    assert set(chosen) == {"random"}
    assert page.locator("#rows thead th[data-name=ASR]").get_attribute("aria-sort") == "ascending"
    page.select_option("select[data-key=agent]", "")
    assert "agent" not in page.url
    for odd in ("#sort=nothing+up&agent=<b>", "#sort=ASR+sideways", "#%", "#a=b=c&&&="):
        page.goto((site / "index.html").as_uri())
        page.goto(board_of(site) + odd)
        assert shown(page), odd


def test_a_trace_leads_to_the_same_task_of_another_run(page: Any, site: Path) -> None:
    page.goto((site / TRACE).as_uri())
    task = page.locator("h1").inner_text()
    page.locator("[aria-labelledby=others] a").first.click()
    page.wait_for_url(lambda url: "/run/gullible/" not in url)
    assert page.locator("h1").inner_text() == task


def test_two_traces_stand_side_by_side_from_where_they_part(page: Any, site: Path) -> None:
    page.goto(next((site / "compare").glob("*.html")).as_uri())
    page.locator("#pairs a", has_text="noop and gullible").click()
    page.locator("details.group[open] a").first.click()
    page.wait_for_selector(".sides")
    first, second = page.locator(".sides > section").all()
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    assert "noop" in first.inner_text()
    assert "did what the attacker wanted" in second.inner_text()
    assert page.get_by_text("messages that both have").is_visible()


def test_keys_lead_from_failure_to_failure(page: Any, site: Path) -> None:
    first_failure(page, site)
    start = page.url
    for key, back in (("j", "k"), ("ArrowRight", "ArrowLeft")):
        page.keyboard.press(key)
        page.wait_for_url(lambda url: url != start)
        assert page.locator("h1").count() == 1
        page.keyboard.press(back)
        page.wait_for_url(start)


def tab_to(page: Any, selector: str) -> None:
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", f"the focus on {selector} is not seen"
            return
    raise AssertionError(f"no tab leads to {selector}")


def test_the_keyboard_alone_leads_from_the_result_to_a_failure(page: Any, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(page, "section.result h2 a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rows")
    tab_to(page, "#rows thead button")
    page.keyboard.press("Enter")
    tab_to(page, "#rows tbody a[href*='gullible']")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.grid")
    tab_to(page, "table.grid td.attacked a")
    page.keyboard.press("Enter")
    page.wait_for_selector(".gist .bad")
    tab_to(page, ".gist .bad a")
    page.keyboard.press("Enter")
    page.wait_for_selector("details.obeyed:target")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_has_a_fault_that_axe_knows(page: Any, site: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for address in of_each_kind(site):
        page.goto(address)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        # Preloading would fetch the style sheet, which the policy of the page forbids.
        found = Axe().run(page, options={"preload": False})
        assert found.violations_count == 0, f"{address}\n{found.generate_report()}"


CUT = """() => {
  // Numbers that the window, or a box around them, does not show whole.
  const cut = [];
  for (const e of document.querySelectorAll('td.num, td.num > *, .count, dd, h1, svg text')) {
    const box = e.getBoundingClientRect();
    if (!box.width || e.closest('.unseen')) continue;
    let [left, right] = [0, innerWidth];
    for (let p = e.parentElement; p; p = p.parentElement) {
      if (getComputedStyle(p).overflowX === 'visible') continue;
      const around = p.getBoundingClientRect();
      [left, right] = [Math.max(left, around.left), Math.min(right, around.right)];
    }
    if (box.left < left - 1 || box.right > right + 1) cut.push(e.textContent.slice(0, 40));
  }
  return cut;
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window_and_no_number_is_cut(
    page: Any, site: Path, hostile: Path, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for address in [*of_each_kind(site), *(path.as_uri() for path in pages(hostile))]:
        page.goto(address)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1], address
        if str(hostile) not in address:
            assert page.evaluate(CUT) == [], address


def test_on_a_telephone_the_numbers_are_what_is_seen(page: Any, site: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(board_of(site))
    seen = page.evaluate(
        "[...document.querySelectorAll('#rows td.num b')].filter(e => { const b = e.getBoundingClientRect();"
        " return b.width && b.bottom <= innerHeight && b.right <= innerWidth; }).length"
    )
    assert seen >= 12, "four rates of three rows"
    page.get_by_text("Filter and sort").click()
    page.select_option("select.sort", label="ASR, down")
    rates = [float(text) for text in shown(page, ASR)]
    assert rates == sorted(rates, reverse=True)


def test_a_run_fits_a_window_of_1280_pixels(page: Any, site: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((site / "run/gullible/index.html").as_uri())
    wider = "e => e.scrollWidth > e.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('.scroll')].filter({wider}).map(e => e.ariaLabel)") == []
    marks = page.locator("table.grid td")
    assert set(marks.locator(".unseen").all_inner_texts()) <= {
        "the attack succeeded",
        "safe, the user's task done",
        "safe, the user's task not done",
    }


def test_one_file_opens_alone_with_style_and_script(
    page: Any, site: Path, single: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in single:
        moved = tmp_path / "mail" / file.name
        moved.parent.mkdir(exist_ok=True)
        moved.write_bytes(file.read_bytes())
        page.goto(moved.as_uri())
        assert page.evaluate("getComputedStyle(document.querySelector('body')).marginTop") == "0px"
        assert page.locator("h1").count() == 1
        assert page.locator("a[href]:not([href^='#'])").count() == 0, "it leads to no other file"
    page.goto((tmp_path / "mail/board.html").as_uri())
    page.locator("#rows thead th[data-name=ASR] button").click()
    rates = [float(value) for value in shown(page, ASR)]
    assert rates == sorted(rates)
    page.goto((tmp_path / "mail/trace.html").as_uri())
    assert page.get_by_role("button", name="Copy the episode as JSON").is_visible()


def test_nothing_of_a_hostile_run_runs_or_loads(page: Any, hostile: Path) -> None:
    for path in pages(hostile):
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.mouse.move(200, 300)
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, iframe, object, embed, style, base, [onload], [onerror], [onmouseover]").count() == 0
        assert page.evaluate(
            "[...document.links].every(a => (a.href.baseVal ?? a.href).startsWith('file:') || a.ownerSVGElement)"
        )
        assert page.locator("main").bounding_box()["width"] <= 1216
    index = page.goto((hostile / "index.html").as_uri())
    assert index is not None
    assert "<script>window.pwned=1</script>" in page.locator("main").inner_text()


def test_a_filter_holds_hostile_names(page: Any, hostile: Path) -> None:
    page.goto(board_of(hostile))
    page.select_option("select[data-key=suite]", index=2)
    assert page.locator("#rows tbody tr:not([hidden])").count() == 1
    assert page.evaluate("window.pwned") is None
