"""A key, a login and a query never reach a file of a run, a log line or the screen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fate_gym.serving import Redactor

CANARIES = {
    "key": "sk-canary-key-0451",
    "user": "canary-user",
    "password": "canary-pass%40word",
    "query": "canary-token-7",
}

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from misbehaving import Fault, Settings, serve
from fate_gym.agents.api import OpenAIAgent
from fate_gym.errors import UsageError
from fate_gym.evaluation import EvalConfig, run_evaluation

logging.basicConfig(level=logging.DEBUG)
secrets, out = sys.argv[1:5], Path(sys.argv[5])

async def policy(request):
    return {"content": "Done."}

async def run(url, name, **options):
    given = url.replace("http://", f"http://{secrets[1]}:{secrets[2]}@") + f"?token={secrets[3]}"
    agent = OpenAIAgent("m", base_url=given, backoff_seconds=0.001, timeout=60.0, max_attempts=2, **options)
    try:
        await agent.check()
    except UsageError as error:
        print("check:", error)
    config = EvalConfig(agent=agent.name, env_args={"suite": "slack"}, attack=(None,), limit=3, out=out / name)
    print(name, (await run_evaluation(config, agent)).summary["episodes"], repr(agent))
    await agent.aclose()

echo = "you sent " + " ".join(secrets) + " key " + secrets[0] * 40
for stream in (False, True):
    with serve(Settings(policy)) as (url, records):
        asyncio.run(run(url, f"good-{stream}", stream=stream))
        print("used", secrets[3] in records.head, "asic " in records.head)
    for status in (400, 401, 404, 429, 500):
        with serve(Settings(policy, refuse=(status, {"message": echo, "code": secrets[0]}))) as (url, _):
            asyncio.run(run(url, f"{status}-{stream}", stream=stream))
    with serve(Settings(policy, forced=[Fault.RESET, Fault.HTML_200] * 9)) as (url, _):
        asyncio.run(run(url, f"broken-{stream}", stream=stream))
asyncio.run(run("http://127.0.0.1:9/v1", "nobody"))
"""


def test_no_secret_reaches_a_file_a_log_or_the_screen(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    env = {**os.environ, "OPENAI_API_KEY": CANARIES["key"], "PYTHONPATH": f"{tests / 'support'}:{tests / 'servers'}"}
    command = [sys.executable, "-c", PROGRAM, *CANARIES.values(), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("used True True") == 2
    assert done.stdout.count("cannot be used: HTTP 401") == 2
    assert "DEBUG:asyncio" in done.stderr
    written = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert sum(path.name == "failures.jsonl" for path in written) == 15
    assert any("[redacted]" in text for path, text in written.items() if path.name == "failures.jsonl")
    for place, text in {"stdout": done.stdout, "stderr": done.stderr, **written}.items():
        for name, canary in {**CANARIES, "decoded": "canary-pass@word", "basic": "Y2FuYXJ5"}.items():
            assert canary not in text, f"the {name} stands in {place}"


@pytest.mark.parametrize("text", ["sk-secret-1 and sk-secret-12", "p@ssword", "p%40ssword", "a=tokentoken&b=x"])
def test_a_redactor_leaves_no_part_of_a_secret(text: str) -> None:
    redact = Redactor("sk-secret-1", "http://sk-secret-12:p%40ssword@host/v1?a=tokentoken&b=x")
    assert not any(part in redact(text) for part in ("secret", "ssword", "token"))


@pytest.mark.parametrize("text", [r"pass\word", r"pass\\word", r"pass\\\\word", "pass%5Cword"])
def test_a_redactor_knows_a_secret_with_a_backslash(text: str) -> None:
    assert Redactor("pass\\word", "http://host/v1")(text) == "[redacted]"


def test_short_values_and_placeholders_are_no_secrets() -> None:
    assert Redactor(None, "http://host/v1?v=1")("HTTP 401 from v1") == "HTTP 401 from v1"


@pytest.mark.parametrize("text", ["\\u" + "\\" * 200_000, "&#x" + "0" * 200_000, "%" * 200_000])
def test_a_redactor_takes_a_time_that_grows_with_the_text(text: str) -> None:
    redact = Redactor("sk-secret-1", "http://host/v1")
    started = time.process_time()
    assert redact(text) == text
    assert time.process_time() - started < 5


@pytest.mark.parametrize("layers", range(6))
def test_a_redactor_knows_escapes_of_escapes(layers: int) -> None:
    mark = "\\" * 2**layers
    text = "".join(f"{mark}u{ord(character):04x}" for character in "sk-secret-1")
    assert Redactor("sk-secret-1", "http://host/v1")(text) == "[redacted]"
