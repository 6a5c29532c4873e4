"""The site in a real browser, opened from disk: it works, and whatever strangers wrote stays text.

The browser is Debian's Chromium, or what FATE_GYM_CHROMIUM names; CI sets that, so that there nothing is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest
from made_runs import hostile_run, pages
from small_runs import DOJO, make_run

CHROMIUM = Path(os.environ.get("FATE_GYM_CHROMIUM", "/usr/bin/chromium"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "FATE_GYM_CHROMIUM" not in os.environ and not CHROMIUM.exists(),
        reason=f"there is no {CHROMIUM}: install chromium, or set FATE_GYM_CHROMIUM to a browser",
    ),
]

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
def browser(site: Path, hostile: Path) -> Iterator[Any]:
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
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / agent, agent, **DOJO) for agent in ("gullible", "noop", "refuser", "random")]
    return made_runs.build(runs, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return made_runs.build([hostile_run(folder / "run")], folder / "site")


def board_of(site: Path) -> str:
    return next(path for path in (site / "board").glob("*.html") if "plots" not in path.name).as_uri()


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
        links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
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
    assert both == page.locator("#rows tbody tr").count() == 8
    page.select_option("select[data-key=agent]", "noop")
    assert set(shown(page)) == {"noop"}
    page.select_option("select[data-key=agent]", "")
    page.fill("input[type=search]", "BANKING")
    assert 0 < page.locator("#rows tbody tr:not([hidden])").count() < both
    assert "of 8 rows" in page.locator("output").inner_text()
    page.fill("input[type=search]", "nothing has this")
    assert shown(page) == []


def test_more_columns_on_demand(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    head = page.locator("#rows th.minor", has_text="reached")
    assert not head.is_visible()
    page.check("input.more")
    assert head.is_visible()


def first_failure(page: Any, site: Path) -> None:
    run = next(path for path in (site / "run").glob("gullible*/index.html"))
    page.goto(run.as_uri())
    page.select_option("select[data-key=class]", "hijacked")
    page.locator("#list tbody tr:not([hidden]) a").first.click()
    page.wait_for_selector(".became")


def test_a_trace_shows_where_the_text_entered_and_leads_to_the_evidence(page: Any, site: Path) -> None:
    first_failure(page, site)
    assert "hijacked" in page.locator(".became").inner_text()
    assert page.locator("details.injected mark").first.is_visible()
    assert page.locator("details.obeyed .chip.bad").first.inner_text() == "serves the attack"
    link = page.locator(".verdict a").first
    anchor = str(link.get_attribute("href"))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    link.click()
    page.wait_for_function("id => document.querySelector(id).open", arg=anchor)


def test_keys_lead_from_failure_to_failure(page: Any, site: Path) -> None:
    first_failure(page, site)
    start = page.url
    for key, back in (("j", "k"), ("ArrowRight", "ArrowLeft")):
        page.keyboard.press(key)
        page.wait_for_url(lambda url: url != start)
        assert page.locator("h1").count() == 1
        page.keyboard.press(back)
        page.wait_for_url(start)


def test_tabs_reach_the_table_and_focus_is_seen(page: Any, site: Path) -> None:
    page.goto(board_of(site))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("thead button").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: Any, site: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for address in ((site / "index.html").as_uri(), board_of(site)):
        page.goto(address)
        assert page.evaluate(CONTRAST) == []
    first_failure(page, site)
    assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  // WCAG 2 contrast of every text against the nearest opaque ground; AA asks for 4.5.
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('body *:not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) low.push(`${e.tagName}.${e.className} ${contrast.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("width", [400, 1200])
def test_no_page_is_wider_than_the_window(page: Any, site: Path, hostile: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    addresses = [(site / "index.html").as_uri(), board_of(site)]
    addresses += [path.as_uri() for path in sorted((site / "run").glob("*/*.html"))[:3]]
    addresses += [path.as_uri() for path in (site / "run").glob("*/index.html")]
    addresses += [path.as_uri() for path in pages(hostile)]
    for address in addresses:
        page.goto(address)
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1], address


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
