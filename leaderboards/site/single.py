"""A board or a trace as one file that needs nothing beside it: it opens from a mail, and its policy stays strict."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Final

from fate_gym.episode import Episode
from fate_gym.evaluation.run import Run
from fate_gym.leaderboards.board import Board
from fate_gym.leaderboards.site.charts import scatter
from fate_gym.leaderboards.site.episodes import CLASSES, STATES, listed
from fate_gym.leaderboards.site.pages import common_values, table_values
from fate_gym.leaderboards.site.reported import regraded_tables, reported
from fate_gym.leaderboards.site.runs import trace_values
from fate_gym.leaderboards.site.tables import MOST_ROWS, lines
from fate_gym.leaderboards.site.text import render_page

_STYLE: Final = '<link rel="stylesheet" href="static/site.css">'
_SCRIPT: Final = '<script src="static/site.js" defer></script>'
_SOURCES: Final = "style-src 'self'; script-src 'self'; img-src 'self'"
_MOST_PLOTS: Final = 4


def board_file(board: Board, *, private: bool) -> str:
    """Returns a board's page as one file, without links to pages that are not in it.

    Args:
        board: The board.
        private: Whether the page says that it holds what may not be published.
    """
    every = lines(board)
    fronts = sorted(board.fronts, key=lambda front: front.suite != "all")[:_MOST_PLOTS]
    values = {
        **common_values(private=private, alone=True),
        **table_values(board, every[:MOST_ROWS]),
        "board": board,
        "first": 1,
        "total": len(every),
        "pages": [],
        "pairs": None,
        "plots": [scatter(board, front, f"plot-{i}") for i, front in enumerate(fronts)],
        "more_plots": None,
        "reported": reported(board.env),
        "regraded": regraded_tables(board.env),
    }
    return _alone(render_page("board", "", values))


def trace_file(run: Run, episode: Episode, *, private: bool) -> str:
    """Returns an episode's page as one file.

    Args:
        run: The episode's run.
        episode: One of its episodes.
        private: Shows also what may not be published (`fate_gym.leaderboards.site.episodes.confidential`).
    """
    values = {
        **common_values(private=private, alone=True),
        **trace_values(run, episode, listed(episode), private=private),
        "run": run,
        "board": None,
        "meanings": CLASSES,
        "states": STATES,
        "others": [],
        "said": [],
    }
    return _alone(render_page("trace", "", values))


def _alone(page: str) -> str:
    """Puts style sheet and script into the page; its policy allows them by their hashes, and nothing else."""
    static = files("fate_gym.leaderboards.site").joinpath("static")
    style, script = (static.joinpath(name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))
    # Up to the title the head is ours to the letter.
    head, title, rest = page.partition("<title>")
    for ours, inlined in (
        (_SOURCES, f"style-src {_hash(style)}; script-src {_hash(script)}"),
        (_STYLE, f"<style>{style}</style>"),
        # A module runs when the page is read, as a script with `defer` does.
        (_SCRIPT, f'<script type="module">{script}</script>'),
    ):
        if head.count(ours) != 1:
            raise AssertionError(f"base.html.j2 must hold {ours} once")
        head = head.replace(ours, inlined)
    return f"{head}{title}{rest}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
