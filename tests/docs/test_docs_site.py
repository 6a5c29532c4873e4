"""The site builds without a warning and without a network, and its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHROMIUM = Path(os.environ.get("FATE_GYM_CHROMIUM", "/usr/bin/chromium"))

# What a browser would fetch by itself; a link that a reader may follow is none of it.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data)=["']((?:https?:)?//[^"']+)"""
    r"""|<link\b[^>]*?\bhref=["']((?:https?:)?//[^"']+)"""
    r"""|(?:url\(|@import\s+)["']?((?:https?:)?//[^"')]+)""",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; no proxy and no address outside this machine would help it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet"]
    env = {**os.environ, "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([*command, str(ROOT / "docs"), str(out)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_no_file_names_what_a_browser_would_load_from_elsewhere(site: Path) -> None:
    found = {}
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css", ".svg"):
            loaded = ["".join(match) for match in _LOADED.findall(path.read_text(encoding="utf-8"))]
            if loaded:
                found[str(path.relative_to(site))] = loaded
    assert found == {}
    assert len(pages(site)) > 25


def test_every_page_of_the_repository_is_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        address = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert address == "index.html" or f'href="{address}"' in index, address


@pytest.mark.skipif(
    "FATE_GYM_CHROMIUM" not in os.environ and not CHROMIUM.exists(), reason="no Chromium: set FATE_GYM_CHROMIUM"
)
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_pages_ask_for_nothing_but_files_and_fit_the_screen(site: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
        for path in pages(site):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        page.goto(f"{(site / 'search.html').as_uri()}?q=attack")
        page.wait_for_selector("ul.search li")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
