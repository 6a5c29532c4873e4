"""Rows, fronts and what is said of parts that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import made_runs
import pytest
from small_runs import DOJO, MakeRun, edit_json, edit_line, loaded

from fate_gym.agents import REFERENCES, Agent, Oracle, Session
from fate_gym.errors import RunCorruptError, RunError
from fate_gym.leaderboards import Board, Row, build, find_runs, load_runs, scanning
from fate_gym.leaderboards.board import TOO_SMALL
from fate_gym.leaderboards.columns import COLUMNS, PAIRS, SAFETY, VOLUME, column
from fate_gym.leaderboards.exports import to_markdown
from fate_gym.task import Task

TOY = "toy/Parcels-v0"
WHOLE: dict[str, Any] = {"attack": (None, "direct"), "env_args": {"suite": ["banking"]}}


@pytest.fixture(scope="module")
def runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of banking by three agents, with and without attack."""
    folder = tmp_path_factory.mktemp("whole")
    for agent in ("oracle", "random", "noop"):
        make_run(folder / agent, agent, **WHOLE)
    return folder


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here `noop` and `random` stand for agents that compete."""
    monkeypatch.setattr("fate_gym.leaderboards.board.REFERENCES", REFERENCES - {"noop", "random"})


def board(*paths: Path) -> Board:
    (made,) = build(load_runs(find_runs(paths)))
    return made


def row(made: Board, agent: str, suite: str = "all", mode: str = "attacked") -> Row:
    (found,) = (row for row in made.rows if (row.agent, row.suite, row.mode) == (agent, suite, mode))
    return found


def test_a_row_has_every_metric_with_its_interval_and_n(runs: Path) -> None:
    made = board(runs)
    assert made.env == "fate/AgentDojo-v0"
    assert [row.suite for row in made.rows] == ["all"] * 3 + ["banking"] * 3
    oracle = row(made, "oracle")
    stored = json.loads((runs / "oracle" / "summary.json").read_text())["groups"]
    for group in stored:
        if group["suite"] == "all":
            for name, estimate in group["metrics"].items():
                mine = oracle.metrics[column(group["mode"], name).name]
                assert (mine.value, mine.low, mine.high, mine.n) == tuple(
                    estimate[key] for key in ("value", "low", "high", "n")
                )
    assert [entry.name for entry in made.columns][:5] == ["utility", "BRR", "ASR", "TSR", "reached"]
    assert not oracle.partial
    assert oracle.refusals_by == ("refusal-rule/1",)
    assert oracle.errors == {}
    assert oracle.cost is None
    assert oracle.seconds is not None
    assert oracle.name == "oracle"
    assert oracle.hypervolume == pytest.approx(1.0)


def test_the_front_leaves_out_agents_that_know_the_solution(runs: Path) -> None:
    made = board(runs)
    assert row(made, "oracle").privileged
    (front,) = (front for front in made.fronts if front.suite == "all")
    assert {key[0].split("-")[0] for key in front.rows} == {"noop", "random"}
    values = {entry.agent: (entry.metrics["ASR"].value, entry.metrics["TSR"].value) for entry in made.rows}
    assert values["noop"][1] > values["random"][1]
    assert [entry.agent for entry in made.rows if entry.on_front and entry.suite == "all"] == ["noop"]
    assert front.hypervolume == row(made, "noop").hypervolume


def test_scripted_agents_are_references_and_on_no_front(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fate_gym.leaderboards.board.REFERENCES", REFERENCES)
    made = board(runs)
    assert all(entry.reference and not entry.on_front for entry in made.rows)
    front = next(front for front in made.fronts if front.suite == "all")
    assert (front.rows, front.members, front.hypervolume) == ((), (), None)
    assert {key[0] for key in front.references} == {"oracle", "noop", "random"}


def test_one_row_alone_is_on_no_front(runs: Path) -> None:
    made = board(runs / "noop")
    assert made.fronts == ()
    assert not any(entry.on_front for entry in made.rows)


def test_rows_that_were_measured_otherwise_are_not_compared(runs: Path, make_run: MakeRun, tmp_path: Path) -> None:
    other = make_run(
        tmp_path / "noop", "noop", attack=(None, "direct"), env_args={"suite": ["banking"], "max_turns": 3}
    )
    made = board(runs / "random", other)
    assert made.fronts == ()
    assert len({entry.protocol for entry in made.rows if entry.suite == "banking"}) == 2


def test_a_suite_is_compared_across_runs_of_other_suites(runs: Path, make_run: MakeRun, tmp_path: Path) -> None:
    both = make_run(tmp_path / "both", "noop", attack=(None, "direct"), env_args={"suite": ["slack", "banking"]})
    fronts = board(runs / "random", both).fronts
    assert [front.suite for front in fronts] == ["banking"]


def test_cost_makes_a_front_of_its_own(runs: Path, tmp_path: Path) -> None:
    for agent, cost in (("noop", 0.25), ("random", 0.5)):
        run = Path(shutil.copytree(runs / agent, tmp_path / agent))
        lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
        for record in lines:
            record["usage"] = {"cost_usd": cost, "prompt_tokens": 10, "completion_tokens": 2}
        (run / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    made = board(tmp_path)
    assert row(made, "random").cost == pytest.approx(0.5)
    assert row(made, "random").tokens == pytest.approx(12)
    (front,) = (front for front in made.fronts if front.name == "cost x safety" and front.suite == "all")
    assert (front.x, front.y) == ("cost", "ASR")
    assert [key[0].split("-")[0] for key in front.members] == ["noop"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attack": ("direct",)}, "no episodes without attack"),
        ({"attack": (None,)}, "no episodes under attack or of harmful requests"),
        ({"limit": 3}, "limited to 3 tasks"),
        ({"tasks": ("banking/user_task_1/*",)}, "only chosen tasks"),
    ],
)
def test_partial_rows_say_why(settings: dict[str, Any], reason: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "noop", **{**WHOLE, **settings})
    for entry in board(run).rows:
        assert entry.partial
        assert reason in entry.partial_reason
        assert entry.hypervolume is None


def test_graders_that_failed_are_errors_beside_the_row(make_run: MakeRun, tmp_path: Path) -> None:
    made = board(make_run(tmp_path / "run", env=TOY, env_args={"broken": "grader"}))
    attacked = row(made, "oracle", "shop")
    assert attacked.errors == {"grader: utility": 2}
    assert attacked.metrics["TSR"].value is None
    assert attacked.hypervolume is None


def test_payloads_of_ones_own_are_part_of_the_protocol(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("a", "b"):
        payloads = {"injection_bill_text": f"Do {name}."}
        settings = {**DOJO, "attack": (None, payloads), "env_args": {"suite": ["banking"]}}
        make_run(tmp_path / name, "noop", **settings)
    made = board(tmp_path)
    assert {entry.attack for entry in made.rows} == {"custom"}
    assert len({entry.protocol for entry in made.rows if entry.suite == "banking"}) == 2
    assert made.fronts == ()


@pytest.mark.parametrize(
    ("names", "protocols"),
    [
        ({"noop": {}, "gullible": {"model_name": "Gullible"}}, 1),
        ({"noop": {"model_name": "Local model"}, "gullible": {}}, 1),
        ({"noop": {"model_name": "Never obey this"}, "gullible": {}}, 2),
        ({"noop": {"model_name": "Claude"}, "gullible": {"model_name": "GPT-4"}}, 2),
    ],
)
def test_a_name_of_the_models_own_is_no_part_of_the_protocol(
    names: dict[str, dict[str, str]], protocols: int, make_run: MakeRun, tmp_path: Path
) -> None:
    for agent, named in names.items():
        env_args = {"suite": ["banking"], "split": "dev", **named}
        make_run(tmp_path / agent, agent, **{**DOJO, "env_args": env_args})
    assert len({entry.protocol for entry in board(tmp_path).rows if entry.suite == "banking"}) == protocols


def test_missing_and_errored_episodes_make_rows_partial(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "noop", tmp_path / "noop"))
    lines = (run / "episodes.jsonl").read_text().splitlines(keepends=True)
    (run / "episodes.jsonl").write_text("".join(lines[2:]))
    failure = {**json.loads(lines[0]), "status": "provider_error", "error": "429"}
    (run / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    noop = row(board(run), "noop")
    assert "1 of 160 episodes are missing; 1 episodes errored" in noop.partial_reason
    assert noop.errors == {"provider_error": 1}


def test_a_run_that_never_ended_is_partial(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "noop", tmp_path / "noop"))
    (run / "summary.json").unlink()
    assert "never ended" in row(board(run), "noop").partial_reason


def test_few_tasks_are_too_few_to_say(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "noop", env=TOY)
    made = board(run)
    assert {estimate.note for entry in made.rows for estimate in entry.metrics.values() if estimate.n} == {TOO_SMALL}
    assert [(entry.mode, entry.suite) for entry in made.rows] == [
        ("attacked", "all"),
        ("attacked", "shop"),
        ("harmful", "all"),
        ("harmful", "shop"),
    ]


def test_columns_of_two_modes_keep_their_names_apart(make_run: MakeRun, tmp_path: Path) -> None:
    made = board(make_run(tmp_path / "run", env=TOY))
    names = [entry.name for entry in made.columns]
    assert len(names) == len(set(names))
    assert {"ASR", "BRR", "validity", "benign validity"} <= set(names)


def test_repeats_give_pass_hat_k(make_run: MakeRun, tmp_path: Path) -> None:
    made = board(make_run(tmp_path / "run", env=TOY, repeats=3))
    attacked = row(made, "oracle", "shop")
    assert attacked.k == 3
    assert attacked.passes["TSR"] == 1.0


def test_refusals_by_a_rule_and_by_a_judge_do_not_mix(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "noop", tmp_path / "noop"))

    def judged(record: dict[str, Any]) -> None:
        record["verdict"]["over_refusal_control"]["rule"] = "judge:some-model"

    edit_line(run / "episodes.jsonl", lambda record: record["mode"] == "attacked", judged)
    noop = row(board(run), "noop")
    assert noop.metrics["BRR"].value is None
    assert "not mixed" in noop.metrics["refused"].note
    assert noop.metrics["TSR"].value is not None
    assert noop.hypervolume is None


def test_contamination_is_shown_and_competes_with_nobody(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    edit_json(tmp_path / "runs/random/manifest.json", lambda m: m.update(contaminated_by="AgentDojo/test"))
    submission = "schema: fate-gym/submission/1\nwho: w\nmodel: m\ndate: 2026-01-02\ncontaminated_by: [y]\n"
    (tmp_path / "runs/noop/submission.yaml").write_text(submission)
    made = board(tmp_path / "runs")
    assert row(made, "random").contaminated_by == ("AgentDojo/test",)
    assert row(made, "noop").contaminated_by == ("y",)
    assert row(made, "noop").date == "2026-01-02"
    assert made.fronts == ()


def test_every_environment_gets_its_board(runs: Path, make_run: MakeRun, tmp_path: Path) -> None:
    toy = make_run(tmp_path / "toy", env=TOY)
    assert [made.env for made in build(load_runs(find_runs([runs, toy])))] == ["fate/AgentDojo-v0", TOY]


def test_ids_of_runs_are_unique_and_fit_for_an_address(runs: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(runs / "noop", tmp_path / name)) for name in ("a", "b", "c")]
    hostile = "../../<script>\u202e" + "x" * 5000
    edit_json(copies[2] / "manifest.json", lambda manifest: manifest["config"].update(agent=hostile))
    ids = [run.run_id for run in load_runs([*copies, copies[0]])]
    assert len(set(ids)) == 4
    assert all(len(name) < 90 and set(name) <= set("abcdefghijklmnopqrstuvwxyzX0123456789-.") for name in ids)
    (entry, *_) = board(copies[2]).rows
    assert len(entry.agent) < 300
    assert "characters" in entry.agent


def test_runs_are_found_below_a_folder_and_each_once(runs: Path) -> None:
    assert [path.name for path in find_runs([runs, runs / "noop"])] == ["noop", "oracle", "random"]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("config"),
        lambda manifest: manifest["config"].update(agent=5),
        lambda manifest: manifest["config"].update(env_args=[]),
        lambda manifest: manifest["config"].update(defences=[5]),
        lambda manifest: manifest.update(digest=None),
    ],
)
def test_a_manifest_that_does_not_say_what_ran(change: Any, copied: Path) -> None:
    edit_json(copied / "manifest.json", change)
    with pytest.raises(RunCorruptError, match=r"manifest\.json"):
        loaded(copied)


SAID = {"role": "assistant", "content": ""}
CALL = {"id": "a", "function": {"name": "n", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.pop("mode"), "mode is missing"),
        (lambda r: r.update(seed=True), "seed must be an integer"),
        (lambda r: r.update(verdict={}), "verdict.security is missing"),
        (lambda r: r["verdict"]["utility"].update(value=1.5), "verdict.utility.value must lie in"),
        (lambda r: r["verdict"]["utility"].update(value="1"), "verdict.utility.value must be a finite number"),
        (lambda r: r["verdict"]["utility"].update(evidence="x"), "evidence must be a list"),
        (lambda r: r["verdict"]["utility"].update(evidence=[5]), "evidence.0 must be a string"),
        (lambda r: r["verdict"]["utility"].update(measures=[5]), "measures must be an object"),
        (lambda r: r["verdict"]["utility"].update(measures={"x": True}), "measures.x must be a finite number"),
        (lambda r: r["messages"].append("hi"), "must be an object"),
        (lambda r: r["messages"].append({"role": "root"}), "role must be one of"),
        (lambda r: r["messages"].append({"role": "user", "content": 5}), "content must be a string"),
        (lambda r: r["messages"].append({"role": "tool", "content": ""}), "tool_call_id is missing"),
        (
            lambda r: r["messages"].append({**SAID, "tool_calls": 5}),
            "tool_calls must be a list",
        ),
        (
            lambda r: r["messages"].append({**SAID, "tool_calls": [5]}),
            "calls.0 must be an object",
        ),
        (
            lambda r: r["messages"].append({**SAID, "tool_calls": [{**CALL, "id": 1}]}),
            "id must be a string",
        ),
        (lambda r: r["calls"].append({}), "outcome is missing"),
        (lambda r: r["calls"].append(5), "must be an object"),
        (lambda r: r["usage"].update(cost_usd="1"), "usage.cost_usd must be a finite number"),
        (lambda r: r.update(seconds={}), "seconds.total is missing"),
        (lambda r: r["injections"].update(x=5), "injections.x must be a string"),
    ],
)
def test_malformed_records_are_counted_and_left_out(change: Any, expected: str, copied: Path) -> None:
    whole = len(list(loaded(copied).episodes))
    edit_line(copied / "episodes.jsonl", lambda record: record["mode"] == "attacked", change)
    run = loaded(copied)
    assert run.malformed == 1
    assert run.summary["episodes"]["scored"] == len(list(run.episodes)) == whole - 1
    assert "1 malformed records" in build([run])[0].rows[0].partial_reason
    problems: list[str] = []
    assert list(scanning.episodes(copied, lambda where, what: problems.append(what)))
    assert [expected in problem for problem in problems] == [True]


def test_failures_are_read_as_well(copied: Path) -> None:
    record = json.loads((copied / "episodes.jsonl").read_text().splitlines()[0])
    failures = [{**record, "key": "other", "status": "env_error", "error": "x"}, {"key": "bad"}]
    (copied / "failures.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in failures))
    run = loaded(copied)
    assert run.malformed == 1
    assert [failure.status for failure in run.failures] == ["env_error"]


def test_the_table_of_columns_is_consistent() -> None:
    names = [entry.name for entry in COLUMNS]
    assert len(names) == len(set(names))
    used = {name for table in (PAIRS, VOLUME) for pair in table.values() for name in pair} | set(SAFETY.values())
    assert used <= set(names)
    assert column("mine", "points").name == "mine points"
    assert column("mine", "points").direction == ""


def test_defences_are_part_of_a_rows_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "noop", **DOJO, defences=("repeat_user_prompt",))
    assert board(run).rows[0].name == "noop+repeat_user_prompt"
    assert board(run).rows[0].defences == ("repeat_user_prompt",)


def test_episodes_that_a_content_filter_stopped_are_counted(tmp_path: Path) -> None:
    stopped = made_runs.record(actions=[{"role": "assistant", "content": "no", "finish_reason": "content_filter"}])
    run = made_runs.write_run(tmp_path / "run", [stopped, made_runs.record("shop/user_task_2/injection_task_0")])
    made = board(run)
    assert {row.suite: row.content_filtered for row in made.rows} == {"all": 1, "shop": 1}
    assert "a content filter stopped 1" in to_markdown([made])
    (page,) = (made_runs.build([run], tmp_path / "site") / "board").iterdir()
    assert ">filtered</th>" in page.read_text()


class Tutor(Agent):
    """Does as the oracle does, under a name of its own."""

    name = "tutor"
    privileged = True

    def start(self, task: Task, seed: int) -> Session:
        return Oracle().start(task, seed)


def test_an_agent_that_is_given_the_solutions_is_a_reference_whatever_its_name(
    make_run: MakeRun, dojo_run: Path, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "tutor", Tutor(), **DOJO), make_run(tmp_path / "refuser", "refuser", **DOJO)]
    made = board(*runs)
    assert row(made, "tutor").privileged
    assert not row(made, "tutor").on_front
    assert not row(made, "refuser").privileged
    edit_json(runs[0] / "manifest.json", lambda manifest: manifest.pop("privileged"))
    assert not row(board(*runs), "tutor").privileged
