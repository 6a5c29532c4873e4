"""The command line as people use it, in processes of its own where that matters."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fate_gym.cli import main, settings, training
from fate_gym.cli.main import _parse
from fate_gym.cli.parser import Parser
from fate_gym.evaluation import EvalConfig, RunFolder
from fate_gym.evaluation.config import model_name, read_settings, shipped_configs

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
TOY = ["--env", "shop_plugin:toy/Parcels-v0"]
BANKING = ["--suite", "banking", "--attack", "none", "--limit", "2"]
COMMANDS = [
    [],
    ["eval"],
    ["train"],
    ["show"],
    ["leaderboard"],
    ["leaderboard", "build"],
    ["leaderboard", "verify"],
    ["leaderboard", "compare"],
    ["leaderboard", "results"],
    ["tasks"],
    ["attacks"],
    ["agents"],
    ["envs"],
    ["data"],
    ["data", "fetch"],
    ["data", "check"],
    ["check-overlap"],
    ["import"],
    ["import", "agentdojo"],
    ["import", "inspect"],
    ["export"],
]
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
SERVER = ["--base-url", "http://127.0.0.1:9/v1"]
CLERK = ["--agent", "import:shop_plugin:clerk"]


def start(*arguments: str | Path, env: dict[str, str] | None = None, **kwargs: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "fate_gym_start.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), **(env or {})}
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def stable(folder: Path) -> list[str]:
    episodes = sorted(RunFolder.read(folder).episodes(), key=lambda episode: episode.key)
    return [json.dumps({**episode.to_json(), "seconds": None}, sort_keys=True) for episode in episodes]


def test_eval_prints_a_table_and_then_resumes_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = ["eval", "--agent", "oracle", "refuser", "--suite", "banking", "--attack", "none,important_instructions"]
    command += ["--limit", "6", "--out", str(tmp_path / "runs")]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "attack: important_instructions" in shown.out
    assert "refusal-rule/1" in shown.out
    assert "12/12" in shown.err
    assert max(len(line) for line in shown.out.splitlines() if "run:" not in line) <= 80
    monkeypatch.delenv("COLUMNS")
    assert main([*command, "--json"]) == 0
    summaries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [summary["agent"] for summary in summaries] == ["oracle", "refuser"]
    assert summaries[0] == json.loads((tmp_path / "runs" / "oracle" / "summary.json").read_text())


def test_a_run_has_its_files_and_no_path_of_the_machine_in_its_episodes(tmp_path: Path) -> None:
    assert main(["eval", *TOY, *CLERK, "--out", str(tmp_path / "run")]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert names == {"manifest.json", "episodes.jsonl", "failures.jsonl", "summary.json"}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert set(manifest) >= {"schema", "config", "digest", "versions", "provenance"}
    assert str(tmp_path) not in (tmp_path / "run" / "episodes.jsonl").read_text()


def test_errors_give_exit_code_1_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", *TOY, "--agent", "import:shop_plugin:absent", "--out", str(tmp_path / "run")]
    assert main(command) == 1
    told = (
        "3 episodes ended in provider_error: the agent gave no answer. They have no score. The same evaluation, "
        "started again, plays them once more. The first says: absent failed: ConnectionError: nobody at the counter"
    )
    err = capsys.readouterr().err
    assert "3 errors" in err
    assert err.splitlines()[-1] == f"{tmp_path / 'run'}: {told}"
    assert main(["show", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert told in shown.splitlines()
    assert "provider_error: absent failed: ConnectionError: nobody at the counter" in shown
    assert main(["show", str(tmp_path / "run"), "shop/smuggle"]) == 0
    assert "status provider_error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "no agent given: --agent NAME"),
        (["eval", "--agent", "wizard"], "unknown agent 'wizard'; there are: oracle, gullible"),
        (["eval", "--agent", "noop", "--suite", "shop"], "unknown suite 'shop'"),
        (["eval", "--agent", "orcle"], "unknown agent 'orcle'; did you mean oracle?; there are"),
        (
            ["eval", "--agent", "gpt-4o-mini"],
            "unknown agent 'gpt-4o-mini'; did you mean openai:gpt-4o-mini?; there are",
        ),
        (["eval", "--agent", "llama", *SERVER], "unknown agent 'llama'; did you mean openai:llama?; there are: oracle"),
        (["eval", "--agent", "Qwen/Qwen3-8B"], "unknown agent 'Qwen/Qwen3-8B'; did you mean hf:Qwen/Qwen3-8B?"),
        (["eval", "--agent", "wizard", "--agent-arg", "x=1"], "unknown agent 'wizard'; there are: oracle, gullible"),
        (["eval", "--agent", "openai", *SERVER], "unknown agent 'openai'; did you mean openai:MODEL?; there are"),
        (["eval", "--agent", "noop", "--suite", "bankin"], "did you mean banking?"),
        (["eval", "--agent", "noop", "--attack", "importnt_instructions"], "did you mean important_instructions?"),
        (["eval", "--agent", "noop", "--defence", "spotlight"], "did you mean spotlighting?"),
        (["eval", "--agent", "noop", "--env", "AgentDojo-v0"], "did you mean fate/AgentDojo-v0?"),
        (["eval", "--agent", "noop", "--env", "nowhere:X-v0"], "there is no module 'nowhere', neither in"),
        (["tasks", "--env", "fate/AgentHram-v0"], "did you mean fate/AgentHarm-v0?"),
        (["evla"], "did you mean eval?"),
        (["eval", "--agnt", "noop"], "there is no option --agnt; did you mean --agent?"),
        (["tasks", "noop"], "too many arguments: noop"),
        (["eval", "--agent", "noop", "--attack", "charm"], "unknown attack 'charm'"),
        (["eval", "--agent", "noop", "--limit", "0"], "limit must be a positive whole number"),
        (["eval", "--agent", "noop", "--env", "fate/Nothing-v0"], "Nothing"),
        (["eval", "--agent", "noop", "--env", "CartPole-v1"], "not an environment of fate-gym"),
        (["eval", "--agent", "noop", "--env-arg", "x"], "--env-arg 'x' must be KEY=VALUE"),
        (["eval", "--agent", "noop", "--env-arg", "charm=3"], "charm"),
        (["eval", "--agent", "noop", "noop"], "an agent is given twice"),
        (["eval", "--agent", "replay:nowhere"], "nowhere"),
        (["eval", "--agent", "import:nowhere:x"], "there is no module 'nowhere', neither in"),
        (["eval", "--agent", "import:shop_plugin:clrk"], "nothing named 'clrk'; did you mean clerk?"),
        (["eval", "--agent", "noop", "--env-arg", "max_turns=many"], "max_turns must be int, got 'many'"),
        (["eval", "--agent", "noop", "--env-arg", "verified_only=3"], "verified_only must be bool, got 3"),
        (["eval", "--config", "nope"], "no configuration 'nope'"),
        (["show", "nowhere"], "nowhere"),
        (["eval", "--agent", "noop", "--env-arg", "benchmark=os:system"], "it has no argument 'benchmark'"),
        (["eval", "--agent", "import:os"], "'os' must be MODULE:NAME"),
        (["eval", "--agent", "import:.x:y"], "'.x' is not the name of a module"),
        (["eval", "--agent", "noop", "--env", ":"], "'' is not the name of a module"),
        (["eval", "--agent", "noop", "--suite", "slack", "--tasks", "slack/*", "bankin/*"], "matches 'bankin/*'"),
        (["eval", "--agent", "noop", "wizard", "--suite", "slack"], "unknown agent 'wizard'"),
        (["eval", "--agent", "openai:x", "--max-cost", "1", *SERVER], "prices={MODEL: {input: 1.0, output: 2.0}}"),
        (["eval", "--agent", "openai:x", "--agent-arg", "prices=3", *SERVER], "{MODEL: {input: 1.0, output: 2.0,"),
        (["eval", "--agent", "openai:x", "--agent-arg", "prices={x: 3}", *SERVER], "must hold input, output and"),
        (["eval", "--agent", "openai:x", "--agent-arg", "tmeperature=3", *SERVER], "did you mean temperature?"),
        (["eval", "--agent", "openai:x", "--suite", "slack", *SERVER], "cannot be used: no connection to"),
        (["eval", *TOY, "--agent", "import:shop_plugin:clerk", "--attack", "all"], "does not say which attacks it has"),
        (["tasks", "--attack", "direct,dos"], "one attack at a time"),
        (["tasks", "--env", "CartPole-v1"], "not an environment of fate-gym"),
        (
            ["tasks", "--env-arg", "sute=banking"],
            "AgentDojo has no argument 'sute'; did you mean suite?",
        ),
        (["envs", "AgentDojo-v0"], "unknown environment 'AgentDojo-v0'; did you mean fate/AgentDojo-v0?"),
        (["envs", "CartPole-v1"], "not an environment of fate-gym"),
        (["agents", "orcle"], "unknown agent 'orcle'; did you mean oracle?"),
        (["eval", "--agent", "noop", "--agent-arg", "x=1"], "the agent noop has no argument 'x'; it takes none"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_settings_is_refused_with_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *TOY, *CLERK, "--out", str(tmp_path / "run")]) == 0
    assert main(["eval", *TOY, *CLERK, "--out", str(tmp_path / "run"), "--seed", "5"]) == 2
    assert "seed: stored 0, given 5" in capsys.readouterr().err


def test_settings_come_from_files_and_flags_override_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "agent: noop\nsuite: slack\nattack: [none, {injection_web_0: hi}]\nenv_args: {trace: executed}\nseed: 4\n"
    )
    command = [
        "eval",
        "--config",
        str(path),
        "--dry-run",
        "--seed",
        "5",
        "--env-arg",
        "model_name=Zed",
        "--max-turns",
        "3",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    import yaml

    (config,) = yaml.safe_load(shown)
    assert config["seed"] == 5
    assert config["env_args"] == {"trace": "executed", "model_name": "Zed", "suite": "slack", "max_turns": 3}
    assert config["attack"] == [None, {"injection_web_0": "hi"}]
    path.write_text("agnet: noop\n")
    assert main(["eval", "--config", str(path)]) == 2
    assert "there is no setting 'agnet'; did you mean agent?" in capsys.readouterr().err


def test_a_dry_run_counts_episodes_and_estimates_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("COLUMNS", "80")
    command = ["eval", "--agent", "openai:gpt-4o-mini", "noop", "--suite", "slack", "--attack", "none", "direct"]
    assert main([*command, "--dry-run", "--out", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    comments = [line for line in shown.splitlines() if line.startswith("#")]
    assert comments[0] == "# openai:gpt-4o-mini: 126 episodes (none 21, direct 105), 0 of them done."
    assert max(map(len, comments)) <= 80
    assert "USD" in " ".join(comments)
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--dry-run", "--json"]) == 0
    model, script = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert model["episodes"] == {"planned": 126, "done": 0}
    tokens = model["at_least"]
    assert tokens["cost_usd"] == pytest.approx(
        (0.15 * tokens["prompt_tokens"] + 0.60 * tokens["completion_tokens"]) / 1e6
    )
    assert script["at_least"]["cost_usd"] == 0


def test_a_dry_run_notes_a_missing_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    command = ["eval", "--agent", "openai:gpt-4o-mini", "--suite", "slack", "--out", str(tmp_path / "run")]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("# openai:gpt-4o-mini: 21 episodes")
    assert shown.err == "note: no API key: set the environment variable OPENAI_API_KEY\n"
    assert "OPENAI_API_KEY" not in os.environ
    assert main(command) == 2


def test_a_dry_run_says_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", *TOY, *CLERK, "--out", str(tmp_path / "run")]
    assert main([*command, "--limit", "1"]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "# clerk: 3 episodes (none 2, note 1), 1 of them done." in capsys.readouterr().out


def test_all_suites_may_stand_beside_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--suite", "slack", "all"]) == 0
    assert {line.partition("/")[0] for line in capsys.readouterr().out.split()} >= {"slack", "banking", "travel"}


def test_every_attack_can_be_asked_for_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from fate_gym.benchmarks.agentdojo.attacks import attack_names

    command = ["eval", "--agent", "noop", "--suite", "slack", "--limit", "1", "--dry-run", "--json"]
    assert main([*command, "--attack", "none", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["attack"] == [None, *attack_names()]


def test_a_start_that_fails_leaves_no_folder_and_shows_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "absent.yaml").write_text("agent: openai:x\nbase_url: http://127.0.0.1:9/v1\n")
    command = ["eval", *TOY, "--agent", "import:shop_plugin:clerk", str(tmp_path / "absent.yaml")]
    assert main([*command, "--out", str(tmp_path / "deep" / "runs")]) == 2
    shown = capsys.readouterr()
    assert "run: " in shown.out
    assert "openai:x cannot be used" in shown.err
    (kept,) = (tmp_path / "deep" / "runs").iterdir()
    assert kept.name.startswith("import-shop-plugin-clerk")


def test_another_agents_folder_is_refused_before_a_bar_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *TOY, *CLERK, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["eval", *TOY, "--agent", "noop", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"fate-gym: {tmp_path / 'run'} holds a run of other settings:")


def test_attacks_address_the_evaluated_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    import yaml

    def names(*arguments: str) -> list[str | None]:
        assert main(["eval", "--dry-run", "--agent", *arguments]) == 0
        return [config["env_args"].get("model_name") for config in yaml.safe_load(capsys.readouterr().out)]

    assert names("openai:gpt-4o-2024-05-13", "openai:somebody", "noop") == ["GPT-4", None, None]
    assert names("openai:gpt-4o-2024-05-13", "noop", "--model-name", "Zed") == ["Zed", "Zed"]
    assert model_name("openai:gpt-4o-2024-05-13", "fate/AgentHarm-v0") == {}


def test_shipped_configurations_are_read() -> None:
    from fate_gym.trainers.study.plan import read_study

    for name in shipped_configs():
        assert read_settings(name)
        if name.startswith("fate-"):
            assert read_study(name).trainings((), ())


def test_every_setting_of_an_evaluation_is_checked() -> None:
    assert set(settings._KINDS) == {entry.name for entry in dataclasses.fields(EvalConfig)}


@pytest.mark.parametrize(
    "text",
    [
        "out: [a]",
        "out: 5",
        'out: "a\\0b"',
        "env_args: [1]",
        "env_args: {x: .nan}",
        "env_args: {x: 2026-01-01}",
        "env_args: {1: 2}",
        "env_args: {x: !!bool maybe}",
        "tasks: [5]",
        "seed: [1]",
        "seed: true",
        "repeats: 1.5",
        "attack: [[direct]]",
        "attack: {vector: 5}",
        "agent: [[a]]",
        "agent: ''",
        "defences: {a: 1}",
        "max_cost: lots",
        "max_cost: .inf",
        "seed: *a",
        "x: &a [1]\nseed: *a",
        "seed: 1\nseed: 2",
        "seed: &a [*a]",
        LAUGHS,
        "1: 2",
        "[1, 2]",
        "a: [",
        "a: b: c",
        "\x00",
        f"seed: {'9' * 5000}",
        "[" * 5000,
        "# " + "x" * 300_000,
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_settings_of_any_yaml_end_in_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["eval", "--agent", "noop", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(path) in err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_is_in_sentences(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--help"])
    assert leaving.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    parser = argparse.Namespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "print_help", lambda self, file=None: setattr(parser, "parser", self))
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    for action in parser.parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help
            assert action.help[0].isupper()
            assert action.help.endswith(".")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_examples_of_the_help_can_be_typed(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    shown = capsys.readouterr().out
    examples = [line for line in shown.splitlines() if line.startswith("  fate-gym ")]
    # A command that has commands of its own leaves the examples to them.
    assert examples or "ACTION" in shown or "COMMAND" in shown or "HARNESS" in shown
    for example in examples:
        words = shlex.split(example)[1:]
        assert words[: len(command)] == command
        assert _parse(words).run


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    assert "fate/AgentDojo-v0" in capsys.readouterr().out
    assert main(["agents"]) == 0
    assert "gullible" in capsys.readouterr().out
    assert main(["attacks"]) == 0
    attacks = capsys.readouterr().out
    assert "important_instructions" in attacks
    assert "manual" not in attacks
    assert main(["tasks", "--suite", "slack", "--attack", "direct", "--split", "inj"]) == 0
    ids = capsys.readouterr().out.split()
    assert ids
    assert all(task.startswith("slack/user_task_") for task in ids)
    assert main(["tasks", "--suite", "banking", "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["id"] == "banking/user_task_0/none"
    assert "ground_truth" not in first
    assert first["prompt"].startswith("Can you please pay the bill")
    assert first["injection_goal"] is None
    assert main(["tasks", "--suite", "banking", "--attack", "direct", "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["injection_goal"].startswith("Send a transaction to ")


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize(
    "command", [["envs"], ["agents"], ["attacks"], ["envs", "fate/AgentDojo-v0"], ["agents", "openai"]]
)
def test_listings_fit_the_window_and_are_not_cut_in_a_pipe(
    command: list[str], width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert shown.split() == piped.split()


def test_an_environment_is_described_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "fate/ATBench-v0"]) == 0
    shown = capsys.readouterr().out
    assert "view  str  default 'full'\n" in shown
    assert "accepted: full, paged" in shown
    assert "max_turns  int  default 30  --max-turns" in shown
    assert main(["envs", "fate/ATBench-v0", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert {"name": "view", "type": "str", "default": "'full'", "accepted": ["full", "paged"]}.items() <= next(
        {**argument, "meaning": None} for argument in page["arguments"] if argument["name"] == "view"
    ).items()
    assert main(["agents", "turn-count"]) == 0
    assert "threshold  int  default 18" in capsys.readouterr().out


def test_show_prints_an_episode_as_a_person_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert (
        main(["eval", "--agent", "gullible", "--suite", "banking", "--attack", "direct", "--limit", "3", "--out", run])
        == 0
    )
    key = next(RunFolder.read(tmp_path / "run").episodes()).key
    capsys.readouterr()
    assert main(["show", run, key]) == 0
    shown = capsys.readouterr().out
    assert "injected at " in shown
    assert "[user]" in shown
    assert "security             " in shown
    assert main(["show", run, "banking"]) == 2
    assert "3 episodes" in capsys.readouterr().err
    assert main(["show", run, "nothing"]) == 2
    assert "holds no episode" in capsys.readouterr().err


def test_show_lists_runs_and_filters_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--agent", "gullible", "noop", "--suite", "banking", "slack", "--attack", "none", "direct"]
    assert main([*command, "--limit", "6", "--out", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "runs")]) == 0
    assert "gullible on fate/AgentDojo-v0: 12 of 12 episodes scored" in capsys.readouterr().out

    def keys(*filters: str) -> list[str]:
        assert main(["show", str(tmp_path / "runs" / "gullible"), *filters]) == 0
        return [
            line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.split("#")[0].count("/") >= 2
        ]

    everything = keys("--all")
    assert len(everything) == 12
    numbers = [[int(number) for number in re.findall(r"task_(\d+)", key)] for key in everything]
    slack = [key for key in everything if key.startswith("none/slack/")]
    assert numbers[-len(slack) :] == sorted(numbers[-len(slack) :])  # task 2 before task 10
    assert keys("--all", "--suite", "slack") == [key for key in everything if "/slack/" in key]
    assert keys("--all", "--attack", "none") == [key for key in everything if key.startswith("none/")]
    assert keys("--all", "--task", "*/user_task_1/*") == [key for key in everything if "/user_task_1/" in key]
    assert main(["show", str(tmp_path / "runs"), "--suite", "slack"]) == 2
    assert "holds several runs: name one of them" in capsys.readouterr().err
    gullible = ["show", str(tmp_path / "runs" / "gullible")]
    assert main([*gullible, "--suite", "slak"]) == 2
    assert "unknown suite of this run 'slak'; did you mean slack?" in capsys.readouterr().err
    assert main([*gullible, "--task", "nowhere/*"]) == 2
    assert "no task of this run matches 'nowhere/*'; the first is banking/" in capsys.readouterr().err
    assert main([*gullible, "--attack", "dirct"]) == 2
    assert "did you mean direct?" in capsys.readouterr().err
    assert main([*gullible, everything[0], "--failed", "security"]) == 2
    assert "leave out --failed" in capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "60")
    for command in (["show", str(tmp_path / "runs")], [*gullible, "--all"]):
        assert main(command) == 0
        assert max(map(len, capsys.readouterr().out.replace(str(tmp_path), "").splitlines())) <= 60
    monkeypatch.delenv("COLUMNS")
    failed = keys("--failed", "security")
    assert failed
    assert all(key.startswith("direct/") for key in failed)


def test_show_lists_a_few_episodes_below_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["eval", "--agent", "noop", "--suite", "slack", "--out", run]) == 0
    capsys.readouterr()
    assert main(["show", run]) == 0
    title, *listed, more = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    opening = "episodes below a perfect score (in parentheses: how each ended): "
    assert title.startswith(opening)
    assert len(listed) == 10
    assert all(line.endswith("(answer)") for line in listed)
    assert more == f"... and {int(title.removeprefix(opening)) - 10} more (--all lists all)"


def test_a_reader_that_goes_away_is_no_news() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # Before the process begins: all that it prints could fit into the pipe.
    process = start("tasks", "--attack", "direct", stdout=writer)
    os.close(writer)
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert err == ""


def test_the_first_interrupt_ends_gently_and_the_same_command_completes(tmp_path: Path) -> None:
    command = ["eval", *TOY, *CLERK, "--repeats", "60", "--concurrency", "2", "--out", tmp_path / "run"]
    process = start(*command)
    _wait_for_episodes(tmp_path / "run", 5)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.splitlines()[-1] == "Interrupted. The same command goes on from here."
    assert RunFolder.read(tmp_path / "run").summary()["episodes"]["missing"] > 0
    assert finish(start(*command))[0] == 0
    assert RunFolder.read(tmp_path / "run").summary()["episodes"]["scored"] == 180


def test_the_second_interrupt_leaves_episodes_under_way(tmp_path: Path) -> None:
    process = start("eval", *TOY, "--agent", "import:shop_plugin:stuck", "--out", tmp_path / "run")
    _read_until(process, "stuck")
    os.kill(process.pid, signal.SIGINT)
    _read_until(process, "Stopping: episodes under way will end; Ctrl-C again leaves them.")
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.splitlines()[-1] == "Interrupted. The same command goes on from here."
    assert RunFolder.read(tmp_path / "run").summary()["episodes"]["missing"] == 3


def _read_until(process: subprocess.Popen[str], line: str) -> None:
    """Reads lines of standard error up to one; the test's own time limit ends a wait in vain."""
    assert process.stderr is not None
    while process.stderr.readline().rstrip("\n") != line:
        assert process.poll() is None


def _kill_and_resume(command: list[str | Path], folder: Path, *, kills: int, longest: float) -> None:
    """Starts a run, kills it at random moments, then lets it end."""
    rng = random.Random(5)
    for _ in range(kills):
        process = start(*command)
        time.sleep(rng.uniform(0, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, _, err = finish(start(*command))
    assert code == 0, err
    for line in (folder / "episodes.jsonl").read_bytes().splitlines():
        json.loads(line)


def test_a_run_killed_8_times_ends_with_every_episode_once(tmp_path: Path) -> None:
    command: list[str | Path] = [
        "eval",
        *TOY,
        *CLERK,
        "--repeats",
        "200",
        "--concurrency",
        "2",
        "--out",
        tmp_path / "run",
    ]
    _kill_and_resume(command, tmp_path / "run", kills=8, longest=1.5)
    keys = Counter(episode.key for episode in RunFolder.read(tmp_path / "run").episodes())
    assert len(keys) == 600
    assert set(keys.values()) == {1}
    assert RunFolder.read(tmp_path / "run").summary()["episodes"] == {
        "planned": 600, "scored": 600, "errors": 0, "missing": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_an_agentdojo_run_killed_20_times_equals_one_that_was_not(tmp_path: Path) -> None:
    command: list[str | Path] = [
        "eval",
        "--agent",
        "random",
        "--suite",
        "all",
        "--attack",
        "none,direct",
        "--repeats",
        "2",
    ]
    _kill_and_resume([*command, "--out", tmp_path / "killed"], tmp_path / "killed", kills=20, longest=9.0)
    assert finish(start(*command, "--out", tmp_path / "whole"))[0] == 0
    assert stable(tmp_path / "killed") == stable(tmp_path / "whole")


def _wait_for_episodes(folder: Path, n: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = folder / "episodes.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not begin")


def _wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_run_with_errors_of_the_environment_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["eval", *TOY, *CLERK, "--env-arg", "broken=open", "--out", run]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "WARNING: 3 episodes ended in env_error" in err
    assert "RuntimeError: no shop today" in err
    assert main(["show", run]) == 0
    assert "WARNING: 3 episodes ended in env_error" in capsys.readouterr().out
    assert main(["eval", *TOY, "--agent", "import:shop_plugin:absent", "--out", str(tmp_path / "absent")]) == 1
    assert "WARNING" not in capsys.readouterr().err


def test_turns_that_a_filter_stopped_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *TOY, "--agent", "import:shop_plugin:filtered", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "filtered" in shown.splitlines()[2]
    assert "content filter stopped" in shown


@pytest.mark.parametrize("command", [["--dry-run"], [], ["collect"]])
def test_training_without_its_extra_is_one_line_and_leaves_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *command, "--config", "fate-tiny"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "fate-gym: training needs trl: pip install 'fate-gym[train]'\n"
    assert not list(tmp_path.iterdir())


def test_the_packages_of_training_are_those_of_the_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split("[>=]", requirement)[0] for extra in ("local", "train") for requirement in extras[extra]}
    assert set(training._PACKAGES) == named - {"fate-gym[local]"}
