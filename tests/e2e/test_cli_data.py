"""`fate-gym data` and `fate-gym check-overlap`, and how harmful requests and terms of use show on the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from hub_server import Hub, hub_server
from test_cli import SUPPORT, TOY

import fate_gym.task
from fate_gym import datafiles
from fate_gym.cli import main
from fate_gym.datafiles import DataFiles
from fate_gym.task import DataPolicy

CONTENT = b'{"canary_guid": "x", "behaviors": [1, 2, 3]}'
SHOP = DataFiles(
    name="shop",
    variable="FATE_GYM_SHOP_DIR",
    repo="harbour/shop",
    revision="1" * 40,
    checksums={"parcels.json": hashlib.sha256(CONTENT).hexdigest(), "crates/test.json": "4f53cda1"},
    policy=DataPolicy(licence="MIT", training=False, note="For tests."),
)
AT = f"harbour/shop/resolve/{'1' * 40}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setitem(datafiles.DATA, "shop", SHOP)
    monkeypatch.delenv(SHOP.variable, raising=False)
    with hub_server(monkeypatch, tmp_path / "cache") as running:
        # The SHA-256 of "[]" begins with 4f53cda1.
        running.files = {f"{AT}/parcels.json": CONTENT, f"{AT}/crates/test.json": b"[]"}
        yield running


def test_fetch_then_check(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "shop"]) == 1
    shown = capsys.readouterr().out
    assert "parcels.json: missing" in shown
    assert "Run `fate-gym data fetch shop`, or set FATE_GYM_SHOP_DIR" in shown
    assert hub.requests == []
    assert main(["data", "fetch", "shop"]) == 0
    assert "licence: MIT. For tests." in capsys.readouterr().out
    assert main(["data", "check", "shop"]) == 0
    shown = capsys.readouterr().out
    assert "the cache of the Hugging Face hub:" in shown
    assert "parcels.json: ok, 3 records" in shown
    assert "crates/test.json: ok by the first 8 digits of its SHA-256, 0 records" in shown


def test_fetch_into_a_folder_says_what_to_set(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "fetch", "shop", "--out", str(out)]) == 0
    assert f"Now set FATE_GYM_SHOP_DIR={out}" in capsys.readouterr().out
    assert (out / "crates" / "test.json").read_bytes() == b"[]"
    assert main(["data", "check", "shop", "--dir", str(out)]) == 0
    assert f"folder {out}:" in capsys.readouterr().out


def test_check_names_what_differs(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parcels.json").write_bytes(b"no json")
    assert main(["data", "check", "shop", "--dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "parcels.json: differs (SHA-256 " in shown
    assert f"on record {SHOP.checksums['parcels.json'][:8]}..." in shown
    assert "crates/test.json: missing" in shown


def test_a_file_that_cannot_be_read_differs(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parcels.json").write_bytes(CONTENT)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert main(["data", "check", "shop", "--dir", str(tmp_path)]) == 1
    assert "parcels.json: differs (cannot be read: Permission denied)" in capsys.readouterr().out


def test_what_cannot_be_had_is_one_line_and_exit_code_2(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files.clear()
    assert main(["data", "fetch", "shop"]) == 2
    assert "fate-gym: harbour/shop did not give parcels.json" in capsys.readouterr().err
    assert main(["data", "check", "shop", "--dir", str(tmp_path / "nowhere")]) == 2
    assert "which is not a folder" in capsys.readouterr().err
    assert main(["data", "check", "shopp"]) == 2
    assert "there is no 'shopp'; did you mean shop?" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_told_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    def slept(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s for the next attempt")

    monkeypatch.setattr("time.sleep", slept)
    # Port 9 of the loopback interface discards, where anything listens at all.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert main(["data", "fetch", "shop"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "let FATE_GYM_SHOP_DIR name it" in err


OVERLAP = ["check-overlap", "--env", "toy/Parcels-v0"]


def test_overlap_is_told_without_the_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": "Well. SHIP parcel\n1! Now."}) + "\n")
    assert main([*OVERLAP, str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"100%  shop/ship  {path}:1\n" in shown
    assert shown.endswith("3 of 3 tasks found; places: 3.\n")
    assert "parcel" not in shown
    path.write_text('{"text": "Ship parcel 2."}\n')
    assert main([*OVERLAP, str(path)]) == 0
    assert capsys.readouterr().out == "No overlap with the 3 tasks of toy/Parcels-v0.\n"


def test_overlap_is_ranked_by_share_above_a_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("fate/AgentDojo-v0", suite="banking").unwrapped
    prompts = {
        task_id: env.benchmark.open(task_id, 0).opening[1]["content"]  # type: ignore[attr-defined]
        for task_id in ("banking/user_task_2/none", "banking/user_task_12/none")
    }
    half, whole = prompts.values()
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (half.rsplit(maxsplit=1)[0], whole)))
    command = ["check-overlap", str(path), "--env", "fate/AgentDojo-v0", "--suite", "banking"]

    def shares(*options: str) -> list[float]:
        main([*command, "--json", *options])
        return [json.loads(line)["share"] for line in capsys.readouterr().out.splitlines()]

    everything = shares("--min-share", "0")
    assert everything == sorted(everything, reverse=True)
    assert everything[0] == 1.0
    assert 0 < everything[1] < 1
    assert shares("--min-share", "0.9") == [1.0]
    assert main([*command, "--min-share", "0.9"]) == 1
    assert "1 more places hold less than 90% of a task's text" in capsys.readouterr().out
    assert main([*command, "--min-share", "2"]) == 2


def test_a_canary_is_told_without_being_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from parcels import Parcels

    describe = Parcels.task
    monkeypatch.setattr(
        Parcels,
        "task",
        lambda self, name: dataclasses.replace(describe(self, name), metadata={"canary": "BIRD-7"}),
    )
    path = tmp_path / "train.txt"
    path.write_text("a\nbird-7\n")
    assert main([*OVERLAP, str(path)]) == 1
    shown = capsys.readouterr().out
    assert shown == f"100%  canary string  {path}:2\n0 of 3 tasks and a canary string found; places: 1.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check-overlap", "{file}"], "no environment given: --env ID"),
        ([*OVERLAP, "nowhere.txt"], "nowhere.txt does not exist"),
        ([*OVERLAP, "{folder}"], "a folder without manifest.json"),
        ([*OVERLAP, "{file}", "--attack", "direct,none"], "this takes one attack at a time"),
        (["check-overlap", "{file}", "--env", "fate/Nothing-v0"], "Nothing"),
        ([*OVERLAP, "{file}", "--min-share", "30%"], "invalid float value"),
    ],
)
def test_wrong_usage_of_the_scan(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("text")
    places = {"{file}": str(tmp_path / "train.txt"), "{folder}": str(tmp_path)}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_training_on_what_may_not_be_trained_on_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["eval", *TOY, "--agent", "noop", "--env-arg", "purpose=training", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "fate-gym: not to be trained on: Parcels are for tests." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_terms_are_told_once_a_process_and_only_where_there_are_some(caplog: pytest.LogCaptureFixture) -> None:
    fate_gym.task.log_terms.cache_clear()
    for _ in range(3):
        gym.make("toy/Parcels-v0")
    gym.make("fate/AgentDojo-v0", suite="banking")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fate_gym", logging.WARNING)
    assert record.getMessage() == "Parcels are for tests. Licence: MIT."


def test_terms_appear_without_any_set_up_of_logging() -> None:
    code = "import gymnasium as gym, shop_plugin; [gym.make('toy/Parcels-v0') for _ in range(2)]"
    env = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, check=True)
    assert done.stderr == "Parcels are for tests. Licence: MIT.\n"


def test_runs_of_harmful_requests_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["eval", *TOY, "--agent", "noop", "--tasks", "shop/smuggle", "--out", out]) == 0
    assert "harmful requests" in capsys.readouterr().out
    assert main(["show", out, "--all"]) == 0
    shown = capsys.readouterr().out
    assert "HCR (complied" in shown
    assert "none/shop/smuggle#0  security 1.00  validity 1.00  (answer)" in shown
    assert main(["show", out, "smuggle"]) == 0
    assert "harbour" in capsys.readouterr().out


def test_judged_and_rule_based_refusals_never_share_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--agent", "noop", "--suite", "banking", "--limit", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert main([*command, "--env-arg", "refusal_judge=builtins:len"]) == 2
    assert "refusal_judge" in capsys.readouterr().err
