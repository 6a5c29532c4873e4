"""Writes the site: the index, a table and plots for each board, pages for runs, their episodes, and pairs of runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import fate_gym
from fate_gym.errors import RunError
from fate_gym.leaderboards.board import Board, Front
from fate_gym.leaderboards.runs import LoadedRun
from fate_gym.leaderboards.site import runs as run_pages
from fate_gym.leaderboards.site.addresses import part as address_part
from fate_gym.leaderboards.site.charts import Scatter, scatter
from fate_gym.leaderboards.site.overview import Overview, overview
from fate_gym.leaderboards.site.pairs import Surveyed, pairs, write_pairs
from fate_gym.leaderboards.site.reported import regraded_tables, reported
from fate_gym.leaderboards.site.runs import Other
from fate_gym.leaderboards.site.tables import MOST_ROWS, Line, choices, depends_on_refusals, lines, split_columns
from fate_gym.leaderboards.site.text import slug, write_page

FOLDERS: Final = ("board", "compare", "run", "static")
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
    names = _names(boards)
    common = common_values(private=private)
    views = [overview(board, names[board.env], f"overview-{i}") for i, board in enumerate(boards)]
    with _workers(runs) as work:
        read = work(run_pages.survey_run, [(run,) for run in runs], private=private)
        surveyed = {run.run_id: Surveyed(run, census) for run, census in zip(runs, read, strict=True)}
        compared = {view.board.env: pairs(_by_rank(view, surveyed)) for view in views}
        written = work(run_pages.write_run, list(_tasks(views, surveyed, out, common)))
        for view in views:
            _write_board(view.board, view.page, bool(compared[view.board.env]), out, common)
            if made := compared[view.board.env]:
                write_pairs(made, (view.board.env, f"board/{view.page}.html"), out, common)
        for _ in written:
            pass
    downloads = [name for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md") if (out / name).is_file()]
    values = {"views": [(view, bool(compared[view.board.env])) for view in views], "runs": runs, "downloads": downloads}
    write_page(out / "index.html", "index", "", common | values)


def _names(boards: Sequence[Board]) -> dict[str, str]:
    """Names the pages of boards: that of `fate/AgentDojo-v0` is `fate-AgentDojo-v0`; a slug where that is no name."""
    plain = {board.env: board.env.replace("/", "-") for board in boards}
    counts = Counter(name.lower() for name in plain.values())
    return {env: address_part(name) if counts[name.lower()] == 1 else slug(env) for env, name in plain.items()}


def _by_rank(view: Overview, surveyed: Mapping[str, Surveyed]) -> list[Surveyed]:
    """The runs of a board, agents before references, the safest first."""
    return [surveyed[line.row.run_id] for line in (*view.agents, *view.references)]


def _tasks(
    views: Sequence[Overview], surveyed: Mapping[str, Surveyed], out: Path, common: Mapping[str, object]
) -> Iterator[tuple[object, ...]]:
    """What `write_run` needs for each run."""
    on_boards = set()
    for view in views:
        board = view.board
        ids = list(dict.fromkeys(row.run_id for row in board.rows))
        others = [
            Other.of(surveyed[run_id].run, surveyed[run_id].census) for run_id in ids[: run_pages.MOST_OTHERS + 1]
        ]
        for run_id in ids:
            on_boards.add(run_id)
            rows = [row for row in board.rows if row.run_id == run_id]
            elsewhere = [other for other in others if other.run_id != run_id]
            link = (board.env, f"board/{view.page}.html")
            run, census = surveyed[run_id].run, surveyed[run_id].census
            yield run, census, board.columns, rows, link, elsewhere, out / "run" / run_id, common
    for run_id, one in surveyed.items():
        if run_id not in on_boards:
            yield one.run, one.census, (), [], None, [], out / "run" / run_id, common


@contextmanager
def _workers(runs: Sequence[LoadedRun]) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields a function that calls another with each of some tuples of arguments, here or in further processes."""
    total = sum(run.summary["episodes"]["scored"] + run.summary["episodes"]["errors"] for run in runs)
    workers = min(len(runs), len(os.sched_getaffinity(0)))
    if workers < 2 or total < _PARALLEL:
        yield lambda function, tasks, **more: [function(*task, **more) for task in tasks]
        return
    # Spawned: a fork would copy the locks of whatever threads there are.
    # Ctrl-C reaches every process of the terminal, and is for the one that the user started to tell of.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=signal.signal, initargs=ignore) as pool:

        def work(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], **more: Any) -> Iterator[Any]:
            futures = [pool.submit(function, *task, **more) for task in tasks]
            return (future.result() for future in futures)

        yield work


def common_values(*, private: bool, alone: bool = False) -> dict[str, object]:
    """Returns what every page reads.

    Args:
        private: Whether the build shows what may not be published.
        alone: Whether the page stands without the others, and so leads to none.
    """
    return {"private": private, "version": fate_gym.__version__, "alone": alone}


def _clear(out: Path) -> None:
    """Removes the pages of an earlier build, and nothing else."""
    index = out / "index.html"
    if index.is_file():
        if _MARK not in index.read_text(encoding="utf-8", errors="replace"):
            raise RunError(f"{index} is not a page of an earlier build: give another --out")
        index.unlink()
        for folder in (out / name for name in FOLDERS if name != "static"):
            for page in folder.rglob("*.html"):
                page.unlink()
            # What is deepest comes last in their order, and is empty first.
            for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                if not any(below.iterdir()):
                    below.rmdir()
    elif any((out / name).exists() for name in FOLDERS):
        raise RunError(f"{out} holds {'/, '.join(FOLDERS)}/ or one of them, and no earlier build: give another --out")


def _write_board(board: Board, name: str, compared: bool, out: Path, common: Mapping[str, object]) -> None:
    every = lines(board)
    parts = [every[i : i + MOST_ROWS] for i in range(0, len(every), MOST_ROWS)] or [[]]
    fronts = sorted(board.fronts, key=lambda front: front.suite != "all")
    # No board's own name holds a "+".
    pages = [name, *(f"{name}+{i}" for i in range(2, len(parts) + 1))]
    plots = list(_plot_pages(board, fronts[_PLOTS:], name))
    shared = {**common, "board": board, "table": f"{name}.html", "pairs": f"compare/{name}.html" if compared else None}
    for i, (page, part) in enumerate(zip(pages, parts, strict=True)):
        values = shared | {
            **table_values(board, part),
            "first": i * MOST_ROWS + 1,
            "total": len(every),
            "pages": [(f"{other}.html", other == page) for other in pages],
            "plots": [scatter(board, front, f"plot-{j}") for j, front in enumerate(fronts[:_PLOTS])] if not i else [],
            "more_plots": plots[0][0] if plots else None,
            "reported": reported(board.env) if not i else [],
            "regraded": regraded_tables(board.env) if not i else [],
        }
        write_page(out / "board" / f"{page}.html", "board", "../", values)
    for page, drawn in plots:
        values = shared | {"plots": drawn, "pages": [(other, other == page) for other, _ in plots]}
        write_page(out / "board" / page, "plots", "../", values)


def table_values(board: Board, part: Sequence[Line]) -> dict[str, object]:
    """Returns what a page shows of a board's table, or of a part of it."""
    main, minor = split_columns(board.columns)
    return {
        "lines": part,
        "main": main,
        "minor": minor,
        "any_filtered": any(row.content_filtered for row in board.rows),
        "choices": choices(part),
        "depends_on_refusals": depends_on_refusals,
    }


def _plot_pages(board: Board, fronts: Sequence[Front], name: str) -> Iterator[tuple[str, list[Scatter]]]:
    for i in range(0, len(fronts), _PLOTS_A_PAGE):
        drawn = [scatter(board, front, f"plot-{j}") for j, front in enumerate(fronts[i : i + _PLOTS_A_PAGE])]
        yield f"{name}+plots-{i // _PLOTS_A_PAGE + 1}.html", drawn
