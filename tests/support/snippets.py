"""The code blocks of a Markdown page, and how they are run.

A page is run from top to bottom in an empty folder: `shell` blocks by bash, `python` blocks in one namespace. A `text`
block is what the block before it prints, whatever spaces are between its words; a line `...` stands for any lines.
A comment right above a block says otherwise:

    <!-- file: NAME -->       the block is written (a second one of the same name: appended) to this file
    <!-- not run: REASON -->  the block is not run, or not printed by the block before it
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from markdown_it import MarkdownIt

RUN: Final = ("shell", "python")

_COMMENT: Final = re.compile(r"<!-- (file|not run): (.+?) -->\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        language: The word after the fence.
        text: What stands in it.
        line: Number of its first line in the page.
        file: The file that it is written to, if any.
        reason: Why it is not run, if it is not.
    """

    language: str
    text: str
    line: int
    file: str | None = None
    reason: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page; one that is indented, not fenced, has no language."""
    comment: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            match = _COMMENT.match(token.content)
            comment = {match[1]: match[2]} if match else {}
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.partition(" ")[0]
            yield Block(language, token.content, token.map[0] + 2, comment.get("file"), comment.get("not run"))
            comment = {}
        elif token.level == 0:
            comment = {}


@dataclass
class Runner:
    """Runs the blocks of a page.

    Attributes:
        folder: Where they run.
        words: Texts of the page that stand for something else here, such as the address of a server.
        env: Environment variables of shell blocks.
    """

    folder: Path
    words: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    _namespace: dict[str, Any] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        """Runs one block; raises `AssertionError` where it fails, or prints something else than the page says."""
        text = block.text
        for word, here in self.words.items():
            text = text.replace(word, here)
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        elif block.language == "shell":
            self.printed = self._shell(text)
        elif block.language == "python":
            self.printed = self._python(text)
        elif block.language == "text":
            missing = absent(block.text, self.printed)
            assert missing is None, f"line {block.line}: {missing!r} is not printed there; this is:\n{self.printed}"

    def _shell(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-c", text],
            cwd=self.folder,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{text}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _python(self, text: str) -> str:
        out = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out):
            exec(compile(text, "<page>", "exec"), self._namespace)  # noqa: S102 (our own text)
        return out.getvalue()


def absent(shown: str, printed: str) -> str | None:
    """Returns the first line of a page that was not printed at its place, or None."""
    lines = _words(printed)
    at, anywhere = 0, False
    for line in _words(shown):
        if line == "...":
            anywhere = True
        else:
            rest = lines[at:] if anywhere or at == 0 else lines[at : at + 1]
            if line not in rest:
                return line
            at += rest.index(line) + 1
            anywhere = False
    return None


def _words(text: str) -> list[str]:
    """The lines of a text without its spaces; an empty one, or a rule below a heading, says nothing."""
    return [squeezed for line in text.splitlines() if (squeezed := " ".join(line.split()).strip("─ "))]


def main() -> None:
    """Lists the blocks that are not run, with their reasons."""
    for name in sys.argv[1:]:
        for block in blocks(Path(name)):
            if block.reason is not None:
                sys.stdout.write(f"{name}:{block.line}: {block.language}: {block.reason}\n")


if __name__ == "__main__":
    main()
