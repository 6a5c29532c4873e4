"""Writes the site: the index, a table and plots for each board, a page for each run and for its episodes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Final

import fate_gym
from fate_gym.errors import RunError
from fate_gym.leaderboards.board import Board, Front, Row
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.site import runs as run_pages
from fate_gym.leaderboards.site.charts import Scatter, scatter
from fate_gym.leaderboards.site.reported import reported
from fate_gym.leaderboards.site.tables import MOST_ROWS, choices, depends_on_refusals, lines, split_columns
from fate_gym.leaderboards.site.text import slug, write_page

FOLDERS: Final = ("board", "run", "static")
"""What a site has beside its index; the pages in them are replaced by the next build."""

_MARK: Final = '<meta name="generator" content="fate-gym leaderboard">'
_PLOTS: Final = 4
"""Plots on a table's page; the others have pages of their own."""

_PLOTS_A_PAGE: Final = 24
_PARALLEL: Final = 1_500
"""Episodes from which a second process pays."""


def build_site(boards: Sequence[Board], runs: Sequence[LoadedRun], out: Path, *, private: bool) -> None:
    """Writes a folder of static pages, to be opened at `out/index.html`; the same runs give the same bytes.

    An earlier site in the folder is replaced: no page of a private build survives a public one. Runs are spread over
    processes, which are spawned, so that a script must call this below `if __name__ == "__main__"`.

    Args:
        boards: As `fate_gym.leaderboards.build` makes them of the runs.
        runs: The runs.
        out: The folder; made if missing.
        private: Shows also what may not be published (`fate_gym.leaderboards.site.episodes.confidential`).

    Raises:
        RunError: The folder holds something that is not an earlier site, or a run is damaged.
    """
    _clear(out)
    for name in FOLDERS:
        (out / name).mkdir(parents=True, exist_ok=True)
    for source in files("fate_gym.leaderboards.site").joinpath("static").iterdir():
        (out / "static" / source.name).write_bytes(source.read_bytes())
    names = {board.env: slug(board.env) for board in boards}
    _write_runs(boards, runs, names, out, private=private)
    for board in boards:
        _write_board(board, names[board.env], out, private=private)
    downloads = [name for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md") if (out / name).is_file()]
    values = _common(private=private) | {
        "boards": [(board, names[board.env], _members(board)) for board in boards],
        "runs": runs,
        "downloads": downloads,
    }
    write_page(out / "index.html", "index", "", values)


def _common(*, private: bool) -> dict[str, object]:
    return {"private": private, "version": fate_gym.__version__}


def _clear(out: Path) -> None:
    """Removes the pages of an earlier build, and nothing else."""
    index = out / "index.html"
    if index.is_file():
        if _MARK not in index.read_text(encoding="utf-8", errors="replace"):
            raise RunError(f"{index} is not a page of an earlier build: give another --out")
        index.unlink()
        for page in [page for name in FOLDERS[:2] for page in (out / name).rglob("*.html")]:
            page.unlink()
        for folder in (out / "run").glob("*/"):
            if not any(folder.iterdir()):
                folder.rmdir()
    elif any((out / name).exists() for name in FOLDERS):
        raise RunError(f"{out} holds {'/, '.join(FOLDERS)}/ or one of them, and no earlier build: give another --out")


def _write_runs(
    boards: Sequence[Board], runs: Sequence[LoadedRun], names: Mapping[str, str], out: Path, *, private: bool
) -> None:
    tasks = []
    for run in runs:
        own = [(board, row) for board in boards for row in board.rows if row.run_id == run.run_id]
        board = own[0][0] if own else None
        link = (board.env, f"board/{names[board.env]}.html") if board else None
        columns = board.columns if board else ()
        rows = [row for _, row in own]
        tasks.append((run, columns, rows, link, out / "run" / run.run_id, _common(private=private)))
    total = sum(run.summary["episodes"]["scored"] + run.summary["episodes"]["errors"] for run in runs)
    workers = min(len(tasks), len(os.sched_getaffinity(0)))
    if workers < 2 or total < _PARALLEL:
        for task in tasks:
            run_pages.write_run(*task)
        return
    # Spawned: a fork would copy the locks of whatever threads there are.
    # Ctrl-C reaches every process of the terminal, and is for the one that the user started to tell of.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=signal.signal, initargs=ignore) as pool:
        for future in [pool.submit(run_pages.write_run, *task) for task in tasks]:
            future.result()


def _members(board: Board) -> list[tuple[str, list[Row]]]:
    """The Pareto sets of all suites together, by attack."""
    rows = {row.key: row for row in board.rows}
    return [
        (front.attack or front.mode, [rows[key] for key in front.members])
        for front in board.fronts
        if front.suite == "all" and front.name == "security x utility"
    ]


def _write_board(board: Board, name: str, out: Path, *, private: bool) -> None:
    every = lines(board)
    parts = [every[i : i + MOST_ROWS] for i in range(0, len(every), MOST_ROWS)] or [[]]
    fronts = sorted(board.fronts, key=lambda front: front.suite != "all")
    pages = [name, *(f"{name}-{i}" for i in range(2, len(parts) + 1))]
    plots = list(_plot_pages(board, fronts[_PLOTS:], name))
    main, minor = split_columns(board.columns)
    shared = _common(private=private) | {"board": board, "table": f"{name}.html"}
    for i, (page, part) in enumerate(zip(pages, parts, strict=True)):
        values = shared | {
            "lines": part,
            "first": i * MOST_ROWS + 1,
            "total": len(every),
            "pages": [(f"{other}.html", other == page) for other in pages],
            "main": main,
            "minor": minor,
            "any_filtered": any(row.content_filtered for row in board.rows),
            "choices": choices(part),
            "plots": [scatter(board, front, f"plot-{j}") for j, front in enumerate(fronts[:_PLOTS])] if not i else [],
            "more_plots": plots[0][0] if plots else None,
            "reported": reported(board.env) if not i else [],
            "depends_on_refusals": depends_on_refusals,
        }
        write_page(out / "board" / f"{page}.html", "board", "../", values)
    for page, drawn in plots:
        values = shared | {"plots": drawn, "pages": [(other, other == page) for other, _ in plots]}
        write_page(out / "board" / page, "plots", "../", values)


def _plot_pages(board: Board, fronts: Sequence[Front], name: str) -> Iterator[tuple[str, list[Scatter]]]:
    for i in range(0, len(fronts), _PLOTS_A_PAGE):
        drawn = [scatter(board, front, f"plot-{j}") for j, front in enumerate(fronts[i : i + _PLOTS_A_PAGE])]
        yield f"{name}-plots-{i // _PLOTS_A_PAGE + 1}.html", drawn
