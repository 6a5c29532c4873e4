"""What the command line prints: every text made visible, on streams that may take nothing more."""

from __future__ import annotations

import ast
import copy
import itertools
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from shop_plugin import HOSTILE
from test_cli import ROOT, SUPPORT, TOY, start

import fate_gym
from fate_gym.cli import main
from fate_gym.cli.terminal import Terminal
from fate_gym.evaluation import RunFolder, load_run
from fate_gym.storage import encode_line

CURSED = ["--env", "shop_plugin:toy/Cursed-v0"]


def check(text: str) -> None:
    """Asserts that a text can do nothing to a terminal and forges no line."""
    hidden = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}
    assert not hidden, (hidden, text)
    assert not any(line.startswith("fate-gym: forged") for line in text.splitlines())


def test_no_command_writes_to_a_stream_by_itself() -> None:
    folders = [Path(fate_gym.__file__).parent, *(ROOT / name for name in ("agents", "leaderboards", "trainers"))]
    # A notebook prints for users of the Python interface, without our terminal; it is held to the same below.
    allowed = {"terminal.py", "notebook.py"}
    offences = [
        f"{path}:{line}"
        for folder in folders
        for path in folder.rglob("*.py")
        if path.name not in allowed
        for line in _writes(ast.parse(path.read_text()))
    ]
    assert offences == []


def _writes(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print" | "Console")):
                yield node.lineno
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"), attr="write"):
                yield node.lineno


@settings(deadline=None)
@given(st.text())
def test_whatever_is_printed_is_visible(text: str) -> None:
    program = Terminal("stdout")
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    with pytest.MonkeyPatch.context() as patch:
        import io

        patch.setattr(sys, "stdout", io.StringIO())
        program.line(text)
        program.text(text)
        program.prose(text)
        program.table(table)
        check(sys.stdout.getvalue())  # type: ignore[attr-defined]


def test_markup_is_text_and_a_line_of_megabytes_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    program = Terminal("stdout")
    program.prose("[red]x[/red] [/b] :smile:")
    program.line("y" * 10**6)
    shown = capsys.readouterr().out
    assert "[red]x[/red] [/b] :smile:" in shown
    assert "(980000 more characters)" in shown
    assert len(shown) < 30_000


@pytest.mark.parametrize("agent", ["curse", "cursed_answer"])
def test_hostile_models_and_benchmarks(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    main(["eval", *CURSED, "--agent", f"import:shop_plugin:{agent}", "--out", run])
    for command in (["show", run], ["show", run, "--all"], ["show", run, "ship-attacked"], ["tasks", *CURSED]):
        assert main(command) == 0
    main(["leaderboard", "verify", run])
    main(["leaderboard", "compare", run, run, "--all"])
    main(["leaderboard", "build", run, "--out", str(tmp_path / "site")])
    load_run(run).show("ship-attacked")
    shown = capsys.readouterr()
    assert "\\x1b" in shown.out
    check(shown.out)
    check(shown.err)


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "--agent", HOSTILE],
        [
            "eval",
            "--agent",
            f"openai:{HOSTILE}",
            "--base-url",
            "http://127.0.0.1:9/v1",
            "--agent-arg",
            "max_attempts=1",
        ],
        ["eval", "--agent", "noop", "--env", HOSTILE],
        ["eval", "--agent", "noop", f"--{HOSTILE}"],
        ["eval", "--agent", "noop", "--env-arg", f"{HOSTILE}=1"],
        ["eval", "--agent", "noop", "--env-arg", f"split=!{HOSTILE}"],
        ["eval", "--agent", "noop", "--attack", HOSTILE],
        ["eval", "--config", HOSTILE],
        [HOSTILE],
        ["show", HOSTILE],
        ["tasks", "--suite", HOSTILE],
        ["leaderboard", "build", HOSTILE],
        ["leaderboard", "verify", HOSTILE],
        ["leaderboard", "compare", HOSTILE, HOSTILE],
        ["data", "check", HOSTILE],
        ["check-overlap", HOSTILE, "--env", "fate/AgentDojo-v0"],
        ["train", HOSTILE, "--config", "fate-tiny"],
        ["train", "--config", HOSTILE],
        ["train", "--config", "fate-tiny", f"{HOSTILE}=1", "--dry-run"],
    ],
    ids=lambda command: " ".join(command)[:20].encode("ascii", "replace").decode(),
)
def test_hostile_words_in_errors(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([word.replace("\ud800", "") for word in command])
    assert code in (1, 2)
    shown = capsys.readouterr()
    check(shown.out)
    check(shown.err)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    yield path
    for key, child in children:
        yield from _leaves(child, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    changed = copy.deepcopy(value)
    *parents, last = path
    at = changed
    for key in parents:
        at = at[key]
    at[last] = new
    return changed


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "episodes.jsonl", "failures.jsonl"])
def test_show_of_a_damaged_run_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    agent = "absent" if name == "failures.jsonl" else "cursed_answer"
    task = "shop/ship-attacked" if name == "summary.json" else "shop/ship"
    main(["eval", *TOY, "--agent", f"import:shop_plugin:{agent}", "--tasks", task, "--out", str(run)])
    stored = json.loads((run / name).read_bytes().splitlines()[0])
    empty = itertools.cycle((None, []))
    damaged = [
        encode_line(_changed(stored, path, new)) for path in list(_leaves(stored))[1:] for new in (HOSTILE, next(empty))
    ]
    for content in [*damaged, b"", b"[]\n", b'{"a": 1%s}\n' % (b"0" * 5000), b"\x1b\xff\n"]:
        (run / name).write_bytes(content)
        for command in (["show", str(run), "--all"], ["show", str(run), "shop"]):
            capsys.readouterr()
            code = main(command)
            shown = capsys.readouterr()
            assert code in (0, 2), content
            check(shown.out)
            check(shown.err)
            assert len(shown.err.splitlines()) == (code == 2), content


def _redirected(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$@" {redirection}'
    program = [sys.executable, str(ROOT / "fate_gym_start.py"), *arguments]
    return subprocess.run(
        ["bash", "-c", command, "bash", *program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
    )


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("command", [["agents"], ["--help"], ["--version"], ["tasks", "--json"], ["eval", "--help"]])
def test_standard_output_that_takes_nothing(redirection: str, command: list[str]) -> None:
    process = _redirected(redirection, *command)
    assert process.returncode == 3
    assert process.stderr.startswith("fate-gym: cannot write to standard output: ")
    assert len(process.stderr.splitlines()) == 1


def test_results_that_cannot_be_printed_are_on_disk(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["eval", *TOY, "--agent", "import:shop_plugin:clerk", "--out", str(run)]
    assert _redirected(">/dev/full", *command).returncode == 3
    assert json.loads((run / "summary.json").read_text())["episodes"]["missing"] == 0


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_standard_error_that_takes_nothing_stops_no_work(redirection: str, tmp_path: Path) -> None:
    command = ["eval", *TOY, "--agent", "import:shop_plugin:clerk", "--out", str(tmp_path / "run")]
    process = _redirected(redirection, *command)
    assert process.returncode == 0
    assert "run: " in process.stdout
    assert _redirected(redirection, "nonsense").returncode == 2


def test_characters_that_the_encoding_lacks_are_named() -> None:
    process = start("eval", "--agent", "fü", env={"PYTHONIOENCODING": "ascii"})
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "unknown agent 'f\\xfc'" in err


def test_a_bug_shows_its_trace_and_no_escapes(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(f"raise RuntimeError({HOSTILE!r})\n")
    process = start("eval", "--agent", "noop", "--env", "broken:x/X-v0", env={"PYTHONPATH": str(tmp_path)})
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    check(out + err)


@pytest.mark.parametrize("columns", ["40", "60", "80", None])
def test_tables_lose_no_name_and_cut_no_number(
    columns: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers of the tests may have a width of their own.
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    name = "a-model-of-many-words-and-a-date-2026-11-26-as-providers-name-theirs"
    path = tmp_path / f"{name}.yaml"
    path.write_text("agent: oracle\ndefences: [repeat_user_prompt, spotlighting, safety_prompt]\n")
    run = str(tmp_path / "run")
    command = ["eval", "--agent", str(path), "--suite", "banking", "--limit", "2", "--out", run]
    assert main([*command, "--attack", "none", "important_instructions"]) == 0
    shown = capsys.readouterr().out
    assert "oracle+repeat_user_prompt+spotlighting+safety_prompt" in shown
    assert "…" not in shown
    assert shown.count("34.2-100") == 3
    assert main(["leaderboard", "compare", run, run]) == 0
    assert "…" not in capsys.readouterr().out
    if columns is None:
        assert "Rates in %, with 95 % intervals that allow for variations of one task. Errors are not scored." in shown


def test_a_module_of_the_package_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fate_gym", "agents", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"agent", "defence"}
    assert all(set(row) == {"kind", "name", "description"} for row in rows)


@pytest.mark.parametrize(("what", "reason"), [("removed", "No such file or directory"), ("edited", "was replaced")])
def test_a_run_folder_that_changes_under_a_run(
    what: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SHOP_VANDAL", f"{what}:{run}")
    command = ["eval", *TOY, "--agent", "import:shop_plugin:vandal", "--concurrency", "1", "--out", str(run)]
    assert main(command) == 3
    shown = capsys.readouterr()
    *_, last = shown.err.splitlines()
    assert reason in last
    assert last.endswith("Once this is mended, the same command goes on from what is on disk.")
    assert "run: " not in shown.out


def test_a_log_that_an_editor_saves_under_a_run_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SHOP_VANDAL", f"saved:{run}")
    command = ["eval", *TOY, "--agent", "import:shop_plugin:vandal", "--concurrency", "1", "--out", str(run)]
    assert main(command) == 0
    counts = RunFolder.read(run).summary()["episodes"]
    assert (counts["scored"], counts["missing"]) == (counts["planned"], 0)
    assert len((run / "episodes.jsonl").read_text().splitlines()) == counts["planned"]
