"""Tables, plots and curves: what they show of a board, and that names do not cover one another."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import made_runs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import Page, benign, record, write_run

from fate_gym.leaderboards import Board, build, load_runs
from fate_gym.leaderboards.site import charts
from fate_gym.leaderboards.site.charts import bars, scatter
from fate_gym.leaderboards.site.reported import reported
from fate_gym.leaderboards.site.tables import MOST_ROWS, choices, lines, split_columns
from fate_gym.leaderboards.site.training import curves

TASKS = 12


def episodes(hits: int, done: int, cost: float | None) -> list[made_runs.Record]:
    usage = {} if cost is None else {"cost_usd": cost, "prompt_tokens": 10.0, "completion_tokens": 1.0}
    plain = [benign(f"shop/user_task_{i}/none", usage=usage) for i in range(TASKS)]
    attacked = [
        record(
            f"shop/user_task_{i}/injection_task_0",
            values=(float(i >= hits), float(i < done), 1.0, 1.0),
            usage=usage,
        )
        for i in range(TASKS)
    ]
    return [*plain, *attacked]


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    systems: dict[str, tuple[int, int, float | None]] = {
        "safe": (0, 4, 0.02),
        "useful": (9, 11, 0.5),
        "beaten": (9, 4, 0.9),
        "free": (6, 6, 0.0),
        "gullible": (12, 12, None),
    }
    return [write_run(folder / name, episodes(*numbers), agent=name) for name, numbers in systems.items()]


@pytest.fixture(scope="module")
def board(run_folders: list[Path]) -> Board:
    (made,) = build(load_runs(run_folders))
    return made


def test_a_plot_draws_every_row_compared_and_the_privileged_as_a_mark(board: Board) -> None:
    front = next(front for front in board.fronts if front.suite == "all" and front.x != "cost")
    plot = scatter(board, front, "p")
    kinds = {dot.label: dot.kind for dot in plot.dots}
    assert kinds == {"safe": "front", "useful": "front", "free": "front", "beaten": "beaten", "gullible": "reference"}
    places = {dot.label: (dot.x, dot.y) for dot in plot.dots}
    assert places["safe"][0] > places["useful"][0], "the safer one stands right, though its ASR is lower"
    assert places["safe"][1] > places["useful"][1], "the less useful one stands lower"
    corners = [tuple(map(float, corner.split(","))) for corner in plot.line.split()]
    assert {places["safe"], places["useful"], places["free"]} <= set(corners)
    assert places["beaten"] not in corners
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(corners)), "a staircase falls"
    assert "100 − ASR" in plot.x_label  # noqa: RUF001


def test_cost_grows_to_the_right_and_its_border_rises(board: Board) -> None:
    front = next(front for front in board.fronts if front.suite == "all" and front.x == "cost")
    plot = scatter(board, front, "p")
    places = {dot.label: (dot.x, dot.y) for dot in plot.dots}
    assert set(places) == {"safe", "useful", "beaten", "free"}
    assert places["free"][0] < places["safe"][0] < places["useful"][0] < places["beaten"][0]
    corners = [tuple(map(float, corner.split(","))) for corner in plot.line.split()]
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(corners))
    assert plot.hypervolume is None
    assert [tick.label for tick in plot.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_rows_that_are_not_drawn_are_counted(board: Board) -> None:
    front = next(front for front in board.fronts if front.x != "cost" and front.suite == "all")
    changed = [
        dataclasses.replace(row, run_id=f"{row.run_id}-{i}", **change)
        for row in board.rows
        if row.name == "beaten" and row.suite == "all"
        for i, change in enumerate(({"partial": True}, {"contaminated_by": ("x",)}, {"partial": False}))
    ]
    plot = scatter(dataclasses.replace(board, rows=(*board.rows, *changed)), front, "p")
    assert plot.left_out == {"partial": 1, "seen in training": 1, "n too small, or a value unknown": 1}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=25))
@settings(max_examples=30)
def test_names_stay_inside_and_off_one_another(places: list[tuple[int, int]]) -> None:
    taken: list[charts.Box] = []
    for x, y in places:
        at_x, at_y = 80 + 95 * x, 30 + 75 * y
        box, _, _ = charts._free(at_x, at_y, 70.0, taken)
        assert box[0] >= charts.LEFT
        assert box[2] <= charts.WIDTH
        assert box[1] >= 0
        if len(places) <= 12:
            assert sum(charts._overlap(box, other) for other in taken) == 0
        taken.append(box)


@pytest.mark.parametrize(("value", "top"), [(0.0, 1.0), (0.0013, 0.002), (1.0, 1.0), (7.1, 10.0), (0.3, 0.5)])
def test_an_axis_ends_on_a_round_number(value: float, top: float) -> None:
    assert charts._round_up(value) == pytest.approx(top)


def test_bars_show_even_one_episode() -> None:
    assert [bar.height for bar in bars([0, 1, 100_000], "abc")] == [0.0, 1.0, 56.0]
    assert [bar.height for bar in bars([0, 0], "ab")] == [0.0, 0.0]


def test_the_table_has_every_row_with_interval_n_and_marks(run_folders: list[Path], tmp_path: Path) -> None:
    site = made_runs.build(run_folders, tmp_path / "site")
    (path,) = (site / "board").glob("*.html")
    page = Page(path)
    assert len([tag for tag, attrs in page.tags if tag == "th" and attrs.get("data-key") == "agent"]) == 10
    for text in ("◆ Pareto set", "given the answers", "n 12", "by rule", "lower is better", "What the columns mean"):
        assert text in page.text, text
    heads = [attrs for tag, attrs in page.tags if tag == "th" and attrs.get("scope") == "col"]
    assert heads
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count("caption")


def test_a_long_board_goes_on_on_further_pages(tmp_path: Path) -> None:
    suites = [
        [benign("s/t/none", suite=f"s{i}", key=f"b{i}"), record("s/t/x", suite=f"s{i}", key=f"a{i}")]
        for i in range(MOST_ROWS + 20)
    ]
    runs = [write_run(tmp_path / name, list(itertools.chain(*suites)), agent=name) for name in ("one", "two")]
    site = made_runs.build(runs, tmp_path / "site")
    boards = [path for path in (site / "board").glob("*.html") if "plots" not in path.name]
    assert len(boards) == 3
    names = [
        attrs for path in boards for tag, attrs in Page(path).tags if attrs.get("data-key") == "agent" and tag == "th"
    ]
    assert len(names) == 2 * (MOST_ROWS + 21)
    assert all(path.stat().st_size < 1_000_000 for path in made_runs.pages(site))


def test_rows_that_were_not_measured_alike_are_told_apart(board: Board) -> None:
    first, *rest = board.rows
    marked = lines(
        dataclasses.replace(board, rows=(first, *(dataclasses.replace(row, protocol="other") for row in rest)))
    )
    assert {line.group for line in marked if line.row.suite == "all"} == {"A", "B"}
    assert {line.group for line in lines(board)} == {""}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((), ""),
        (("refusal-rule/1",), "rule"),
        (("judge:x",), "judge"),
        (("judge:x", "refusal-rule/1"), "rule and judge"),
    ],
)
def test_who_recognised_refusals_is_said(board: Board, rules: tuple[str, ...], words: str) -> None:
    changed = dataclasses.replace(board, rows=tuple(dataclasses.replace(row, refusals_by=rules) for row in board.rows))
    assert {line.refusals_by for line in lines(changed)} == {words}


def test_there_is_a_filter_where_there_is_a_choice(board: Board) -> None:
    assert choices(lines(board)) == {
        "agent": ["beaten", "free", "gullible", "safe", "useful"],
        "suite": ["all", "shop"],
    }


def test_unknown_columns_alone_are_all_shown(board: Board) -> None:
    odd = [dataclasses.replace(column, name=f"odd {column.name}") for column in board.columns]
    assert split_columns(odd) == (odd, [])
    main, minor = split_columns(board.columns)
    assert "ASR" in [column.name for column in main]
    assert "reached" in [column.name for column in minor]


def test_reported_numbers_are_of_their_benchmark_and_as_printed() -> None:
    tables = reported("fate/AgentDojo-v0")
    assert tables
    assert {table.benchmark for table in tables} == {"AgentDojo"}
    assert reported("fate/Shop-v0") == []
    for table in tables:
        assert table.source
        for _, _, values in table.rows:
            assert len(values) == len(table.metrics)
            assert len({len(value.partition(".")[2]) for value in values if value != "–"}) == 1  # noqa: RUF001


def training(folder: Path, *, mark: object = None, steps: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fate-gym.json").write_text(json.dumps({"schema": "fate-gym/train/1"} if mark is None else mark))
    lines_ = [{"step": i, "loss": 1 / i, "vector": {"security": i / 1000}} for i in range(1, 1001)]
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_) if steps is None else steps)
    return folder


def test_a_run_has_the_curves_of_the_training_whose_files_it_holds(tmp_path: Path) -> None:
    loss, security = curves(training(tmp_path / "model"))
    assert (loss.name, loss.steps, loss.first, loss.last) == ("loss", 1000, 1.0, 0.001)
    assert (security.name, security.high) == ("security", 1.0)
    assert len(loss.points.split()) <= 302
    made = write_run(tmp_path / "run", [record()])
    training(made)
    site = made_runs.build([made], tmp_path / "site")
    assert "1000 steps, from 1 to 0.001" in "".join(Page(path).text for path in (site / "run").glob("*/index.html"))


@pytest.mark.parametrize(
    ("mark", "steps"),
    [
        ("text", None),
        ({"schema": "other"}, None),
        (None, ""),
        (None, '{"loss": NaN}\n{"vector": 3}\n'),
        (None, "x\n{}\n"),
        ({"schema": ["fate-gym/train/1"]}, None),
        (None, '{"loss": 1%s}\n{"loss": 1e308}\n{"loss": -1e308}\n' % ("0" * 400)),
        (None, '{"vector": {"security": true}}\n' * 2 + "[" * 5000 + "\n{}\n"),
    ],
)
def test_what_is_no_training_has_no_curves(tmp_path: Path, mark: object, steps: str | None) -> None:
    assert curves(training(tmp_path / "m", mark=mark, steps=steps)) == []


@pytest.mark.parametrize("outside", ["model", "model/../model", "\0", "x" * 5000, ""])
def test_no_path_that_a_manifest_names_is_opened(outside: str, tmp_path: Path) -> None:
    training(tmp_path / "model")
    made = write_run(tmp_path / "run", [record()], agent=f"hf:{tmp_path}/{outside}")
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watching:
            opened.append(str(arguments[0]))

    watching = True
    sys.addaudithook(watch)
    site = made_runs.build([made], tmp_path / "site")
    watching = False
    assert opened
    assert [path for path in opened if path.startswith(str(tmp_path / "model"))] == []
    assert "steps, from" not in "".join(Page(path).text for path in (site / "run").glob("*/index.html"))


def test_plots_that_a_table_has_no_room_for_have_pages(
    run_folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fate_gym.leaderboards.site.pages._PLOTS", 1)
    monkeypatch.setattr("fate_gym.leaderboards.site.pages._PLOTS_A_PAGE", 2)
    site = made_runs.build(run_folders, tmp_path / "site")
    counts = {path.name: [tag for tag, _ in Page(path).tags].count("svg") for path in (site / "board").glob("*.html")}
    assert sorted(counts.values()) == [1, 1, 2], "two fronts for all suites, two for the only one"
    table = Page(next(path for path in (site / "board").glob("*.html") if "plots" not in path.name))
    first = next(link for link in table.links if "plots" in link)
    assert counts[first] == 2
    assert len([link for link in Page(site / "board" / first).links if "plots-2" in link]) == 1


def test_a_run_says_what_was_run_and_what_its_submitter_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [record()], attack=[None, "attack"], out="/home/somebody/runs")
    (run / "submission.yaml").write_text(
        "schema: fate-gym/submission/1\nwho: Ada\nmodel: tiny-1\ndate: 2026-01-02\ncontaminated_by: [Shop/test]\n"
    )
    site = made_runs.build([run], tmp_path / "site")
    (path,) = (site / "run").glob("*/index.html")
    text = Page(path).text
    for words in ("Ada", "tiny-1", "2026-01-02", "Shop/test", "none, attack", "fate-gym 0.1.0", "seen in training"):
        assert words in text, words
    assert "somebody" not in text
