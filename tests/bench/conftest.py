"""One table of what the benches measured: ours, the peer's, their ratio and what we aim at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Row = tuple[str, str, str, str, str]
_HEADER: Row = ("work", "ours", "peer", "ratio", "target")
_ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture
def table(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Adds a row: what was done, our figure, the peer's, their ratio, and what we aim at.

    Tests assert what holds by now, which may be less.
    """

    def add(work: str, ours: str, peer: str = "", ratio: str = "", target: str = "") -> None:
        pytestconfig.stash.setdefault(_ROWS, []).append((work, ours, peer, ratio, target))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table below the results."""
    if not (rows := config.stash.get(_ROWS, [])):
        return
    rows = [_HEADER, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    terminalreporter.section("bench")
    for row in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
