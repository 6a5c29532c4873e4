"""Every code block of README and of the documentation runs, and prints what the page says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Settings, serve
from snippets import RUN, Block, Runner, absent, blocks

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "leaderboards/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCKS = {str(page.relative_to(ROOT)): list(blocks(page)) for page in PAGES}
RUNNABLE = [
    name for name, listed in BLOCKS.items() if any(block.language in RUN and block.reason is None for block in listed)
]

SERVER = "http://127.0.0.1:8000/v1"
OPENAI = "--agent openai:gpt-4o-mini"
LOCAL = "hf:Qwen/Qwen3-0.6B"


async def _policy(request: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "Done."}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve(Settings(_policy)) as (url, _):
        yield url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_is_run_or_says_why_not(name: str) -> None:
    before: Block | None = None
    for block in BLOCKS[name]:
        where = f"{name}:{block.line}"
        if block.language == "":
            commands = [
                line for line in block.text.splitlines() if line.startswith(("fate-gym ", "make ", "pip ", "$"))
            ]
            assert not commands, f"{where}: give the block a language"
        elif block.reason is None and not block.language.startswith("{"):
            assert block.language in (*RUN, "text", "yaml", "json"), f"{where}: no known language: {block.language!r}"
            if block.language == "text":
                ran = before is not None and before.language in RUN and before.reason is None
                assert ran, f"{where}: what prints this?"
            if block.language in ("yaml", "json"):
                assert block.file is not None, f"{where}: which command reads this?"
        before = block


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_blocks_of_a_page_run(name: str, folder: Path, server: str, request: pytest.FixtureRequest) -> None:
    prices = "prices={gpt-4o-mini: {input: 0.15, output: 0.6}}"
    words = {
        SERVER: server,
        # OpenAI's own server cannot be asked here; the loopback server stands for it.
        OPENAI: f"{OPENAI} --base-url {server} --agent-arg '{prices}'",
    }
    if any(LOCAL in block.text for block in BLOCKS[name]):
        words[LOCAL] = f"hf:{request.getfixturevalue('model')}"
    env = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OPENAI_API_KEY": "unused",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "110",
    }
    runner = Runner(folder, words, env)
    for block in BLOCKS[name]:
        if block.reason is None:
            try:
                runner.run(block)
            except Exception as error:
                pytest.fail(f"{name}:{block.line}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("a  b\nc", None),
        ("c", None),
        ("a b\n...\nd", None),
        ("a b\nd", "d"),
        ("c\na b", "a b"),
        ("e", "e"),
    ],
)
def test_what_a_page_shows_is_looked_for_line_by_line(shown: str, missing: str | None) -> None:
    assert absent(shown, "a b\n  c\n\nd\n") == missing


def test_the_table_of_the_readme_is_that_of_the_study() -> None:
    shown = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    study = (ROOT / "docs/evidence/fate-tiny-study/study.md").read_text(encoding="utf-8")
    pair = study.split("## Test set pair\n")[1].split("\n## ")[0].splitlines()
    assert len(shown) > 3
    assert not [line for line in shown if line not in pair]


def test_the_readme_is_one_screen_and_a_half() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 88
    assert max(map(len, lines)) <= 120
