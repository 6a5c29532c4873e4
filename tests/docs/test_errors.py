"""The errors of the page of questions are those that the code, or Gymnasium, raises."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ERRORS = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)

# Gymnasium's own, which a page has to explain.
THEIRS = "Namespace ... not found. ..."


def _texts(path: Path) -> Iterator[str]:
    """The string literals of a file; what an f-string puts in is `...`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.py")]


def _pattern(error: str) -> re.Pattern[str]:
    """Names and numbers may be anything; quotes are of either kind."""
    parts = [re.escape(part) for part in re.split(r"\.\.\.", error)]
    return re.compile(".*".join(parts).replace("'", "['`]"), re.DOTALL)


@pytest.fixture(scope="module")
def ours() -> str:
    files = _files(*(ROOT / name for name in ("fate_gym", "agents", "trainers", "leaderboards")))
    return "\0".join(text.replace("\0", "") for path in files for text in _texts(path))


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_the_page_exists(error: str, ours: str) -> None:
    spec = importlib.util.find_spec("gymnasium")
    assert spec is not None
    assert spec.origin is not None
    where = ours
    if error == THEIRS:
        where = "\0".join(_texts(Path(spec.origin).parent / "envs" / "registration.py"))
    pattern = _pattern(error)
    assert any(pattern.search(text) for text in where.split("\0")), error


def test_there_are_errors_on_the_page() -> None:
    assert len(ERRORS) > 20
    assert THEIRS in ERRORS
