"""Every parser and boundary at which bytes of a model, a server or a stranger come in: one list for all ways to fuzz.

A target takes bytes and returns. It raises where the software does what it promises never to do: an exception of
another kind than the documented one, an episode without a score, a value that its readers do not expect. The fast tests
draw the bytes by hypothesis (`test_fuzz.py`); `coverage_guided.py` has atheris look for bytes that reach new code.
"""

from __future__ import annotations

import ast
import asyncio
import atexit
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import made_runs
import shop_plugin  # noqa: F401 (registers the toy benchmark)
import small_runs
from shop_plugin import clerk

from fate_gym.errors import FateGymError, JudgeError, RunError, SnapshotError

_SHIP = {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "ship", "arguments": '{"parcel": 1}'}}]}


@dataclass(frozen=True)
class Target:
    """One boundary.

    Attributes:
        name: What the bytes are.
        seeds: Gives well-formed bytes, from which others are made.
        check: Takes any bytes; raises only if something is wrong.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], None]


@cache
def _scratch() -> Path:
    """A folder for this process alone."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _value(data: bytes) -> Any:
    """What bytes spell, as generously as possible: JSON, a Python literal, or text."""
    text = data.decode(errors="surrogateescape")
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _assert_json(value: Any) -> None:
    """Fails on what a run folder could not hold."""
    json.dumps(value, allow_nan=False).encode("ascii")


def _assert_explained(error: Exception) -> None:
    """Fails on an error that says nothing, or fills the screen with a stranger's words."""
    assert 0 < len(str(error)) < 3000, type(error).__name__


def _assert_scored(env: Any, info: dict[str, Any]) -> None:
    """Fails unless an episode has a score, whatever has been sent."""
    assert info["status"] == "ok", info
    assert info["reward_mask"].any()
    vector = info["verdict"].vector
    assert all(0 <= value <= 1 for value in vector), vector
    transcript = env.transcript
    _assert_json([transcript.messages, transcript.actions, [call.arguments for call in transcript.calls]])


# Actions and arguments: what a model sends to an environment.


@cache
def _shop() -> Any:
    return gym.make("toy/Parcels-v0").unwrapped


@cache
def _bank() -> Any:
    return gym.make("fate/AgentDojo-v0", suite="banking", attack="important_instructions").unwrapped


def _play(env: Any, actions: list[Any]) -> None:
    env.reset(seed=0, options={"task_id": env.tasks[1]})
    info: dict[str, Any] = {}
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    if env.transcript.ended is None:
        info = env.truncate("enough")[4]
    _assert_scored(env, info)


def check_action(data: bytes) -> None:
    """One action, or a list of them."""
    value = _value(data)
    _play(_shop(), value[:8] if isinstance(value, list) else [value])


def _action_seeds() -> list[bytes]:
    parts = {"content": [{"type": "text", "text": "Hi"}, {"type": "text", "content": "Hi"}, "Hi"], "refusal": "No."}
    thought = {"content": "<think>x</think>[TOOL_CALLS]<tool_call>{}</tool_call>", "reasoning_content": "x"}
    return [json.dumps(value).encode() for value in ([_SHIP, "Done."], _SHIP, parts, thought, [], "Done.", [_SHIP] * 9)]


def check_arguments(data: bytes) -> None:
    """Arguments of calls of AgentDojo's tools: as text, as decoded values, and as values of single fields."""
    text, value = data.decode(errors="surrogateescape"), _value(data)
    forms = [text, value, {"recipient": value, "amount": text, "subject": value, "date": text}, {"file_path": value}]
    names = ("send_money", "update_user_info", "read_file", "schedule_transaction")
    calls = [{"function": {"name": name, "arguments": form}} for name, form in zip(names, forms, strict=True)]
    _play(_bank(), [{"tool_calls": calls}])


def _argument_seeds() -> list[bytes]:
    literals = (b"['a@b.co']", b"{'a': {1, 2}}", b"[b'x', 1j, ...]", b"(1, [2])", b"-1e400", b"{[1]: 2}")
    return [b'{"recipient": "US122000000121212121212", "amount": 1.5, "subject": "x", "date": "2022-01-01"}', *literals]


# Servers.


def check_answer(data: bytes) -> None:
    """The body of an answer, whole or streamed, which comes in pieces; the first byte says how long they are."""
    from fate_gym.agents._history import History
    from fate_gym.serving import ModelFaultError, Redactor, TransientError
    from fate_gym.serving._completions import AnswerReader

    size, body = (data[0] + 1, data[1:]) if data else (1, b"")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    reader = AnswerReader("http://server", Redactor(None, "http://server"))
    try:
        completion = asyncio.run(reader.read(pieces()))
    except (FateGymError, ModelFaultError, TransientError) as error:
        _assert_explained(error)
        return
    for name, number in completion.usage.items():
        # What cannot be true is NaN here, and whoever adds up leaves it out.
        assert math.isnan(number) or 0 <= number < 2**63, name
    env = _shop()
    observation, _ = env.reset(seed=0, options={"task_id": env.tasks[1]})
    history = History()
    history.remember(len(observation["messages"]), completion.message)
    observation, _, terminated, _, info = env.step(completion.message)
    # What goes back to the server is JSON, whatever the server has sent.
    _assert_json(history.restore(observation["messages"], frozenset()))
    _assert_scored(env, info if terminated else env.truncate("enough")[4])


_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


def _reply_seeds() -> list[bytes]:
    message = {"role": "assistant", "content": None, **_SHIP}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    error = {"error": {"message": "overloaded", "code": 503}}
    text = {"choices": [{"message": {"content": "Done.", "reasoning": "x"}, "finish_reason": "stop"}], "usage": None}
    return [b"\xff" + json.dumps(value).encode() for value in (whole, text, error, {**text, "choices": []})]


def _stream_seeds() -> list[bytes]:
    def chunk(delta: Any, reason: str | None = None) -> Any:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    call = {"index": 0, "id": "a", "function": {"name": "ship", "arguments": '{"par'}}
    rest = {"index": 0, "function": {"arguments": 'cel": 1}'}}
    calls = [chunk({"role": "assistant", "content": ""}), chunk({"tool_calls": [call]}), chunk({"tool_calls": [rest]})]
    end = [chunk({}, "tool_calls"), {"choices": [], "usage": _USAGE}]
    text = [chunk({"content": "Do"}), chunk({"content": "ne.", "reasoning_content": "x"}), chunk({}, "stop")]
    whole = [chunk({"tool_calls": [{"id": "b", "function": {"name": "ship", "arguments": {"parcel": 1}}}]}, "stop")]
    streams = ([*calls, *end], text, whole, [{"error": {"message": "x"}}])
    return [b"\x10" + b"".join(b"data: %s\n\n" % line for line in _lines(*stream).splitlines()) for stream in streams]


# Run folders.


@cache
def _run() -> Path:
    """A small whole run."""
    return small_runs.make_run(_scratch() / "run", _clerk(), env="toy/Parcels-v0")


def _clerk() -> Any:
    from fate_gym.rollout import as_agent

    return as_agent(clerk)


def _check_run_with(name: str, data: bytes) -> None:
    """Reads, verifies and ranks a run one of whose files holds these bytes."""
    from fate_gym.leaderboards.verification import verify

    folder = _scratch() / "damaged"
    if not folder.exists():
        shutil.copytree(_run(), folder)
    sound = (_run() / name).read_bytes()
    (folder / name).write_bytes(data)
    try:
        _read_run(folder)
        try:
            report = verify(folder, trusted="shop_plugin")
        except FateGymError as error:
            _assert_explained(error)
        else:
            _assert_json(report.to_json())
            assert data != sound or report.ok
    finally:
        (folder / name).write_bytes(sound)


def _read_run(folder: Path) -> None:
    from fate_gym.evaluation import RunFolder

    try:
        run = RunFolder.read(folder)
        list(run.episodes())
        list(run.failures())
        run.summary()
    except FateGymError as error:
        _assert_explained(error)


def check_run_line(data: bytes) -> None:
    """`episodes.jsonl`."""
    _check_run_with("episodes.jsonl", data)


def check_failure_line(data: bytes) -> None:
    """`failures.jsonl`."""
    _check_run_with("failures.jsonl", data)


def check_manifest(data: bytes) -> None:
    """`manifest.json`."""
    _check_run_with("manifest.json", data)


def check_summary(data: bytes) -> None:
    """`summary.json`."""
    _check_run_with("summary.json", data)


def _file_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_run() / name).read_bytes()]


def _failure_seeds() -> list[bytes]:
    return [_lines({**made_runs.record(), "status": "provider_error", "error": "gave up"})]


def check_submission(data: bytes) -> None:
    """`submission.yaml`."""
    from fate_gym.leaderboards.submissions import FILE, read_submission

    path = _scratch() / FILE
    path.write_bytes(data)
    try:
        submission = read_submission(path.parent)
    except RunError as error:
        _assert_explained(error)
        return
    assert submission is not None
    assert submission.who


def _submission_seeds() -> list[bytes]:
    plain = (
        b"schema: fate-gym/submission/1\nwho: A. P.\nmodel: m\ndate: 2026-01-02\nnotes: |\n  x\ncontaminated_by: [A]\n"
    )
    return [plain, plain + b"a: &x [1]\nb: *x\n", plain.replace(b"m\n", b"!!timestamp x\n"), b"<<: {who: a}\n" + plain]


# Settings.


def check_yaml(data: bytes) -> None:
    """A configuration of an evaluation or a training."""
    from fate_gym.evaluation.config import read_settings
    from fate_gym.trainers.config import read_config

    path = _scratch() / "settings.yaml"
    path.write_bytes(data)
    for read in (read_settings, read_config):
        try:
            read(str(path))
        except (ValueError, FateGymError) as error:
            _assert_explained(error)


def _yaml_seeds() -> list[bytes]:
    configs = Path(__file__).parents[2] / "configs"
    small = b"agent: a\nenv: toy/Parcels-v0\nattack: [null, {note: x}]\nenv_args: &a {broken: null}\nagent_args: *a\n"
    return [small, (configs / "fate-tiny-ci.yaml").read_bytes()]


# Trainings.

_STAGE = "fate-gym/stage/1"


def check_stage_file(data: bytes) -> None:
    """A file of a training's stage."""
    from fate_gym.trainers.stage_file import read_stage

    path = _scratch() / "stage.jsonl"
    path.write_bytes(data)
    try:
        stage = read_stage(path, _STAGE)
    except RunError as error:
        _assert_explained(error)
        return
    assert stage.counts["records"] == len(stage.records)


def _stage_seeds() -> list[bytes]:
    from fate_gym.trainers.stage_file import write_stage

    path = _scratch() / "seed.jsonl"
    write_stage(path, _STAGE, [{"key": "a", "v": 1}, {"key": "b", "v": [None]}], inputs={"x": 1}, counts={})
    return [path.read_bytes()]


# Snapshots.


def check_snapshot(data: bytes) -> None:
    """Bytes for `restore`, as they are and behind a head and checksum that are right."""
    env = _bank()
    env.reset(seed=0, options={"task_id": env.tasks[1]})
    env.step({"tool_calls": [{"function": {"name": "get_balance", "arguments": "{}"}}]})
    for bytes_ in (data, _signed(env, data)):
        before = env.snapshot()
        try:
            env.restore(bytes_)
        except SnapshotError as error:
            _assert_explained(error)
            # What is refused has changed nothing.
            assert env.snapshot() == before
        else:
            _assert_scored(env, env.truncate("enough")[4])
            env.restore(before)


def _signed(env: Any, body: bytes) -> bytes:
    """Puts the head of this environment's own snapshots before a body, so that more than the checksum is tried."""
    own = env.snapshot()
    head = own[: own.index(b"\n") + 1 + 16]
    return head + hashlib.blake2b(body, digest_size=16).digest() + body


def _snapshot_seeds() -> list[bytes]:
    env = _bank()
    env.reset(seed=0, options={"task_id": env.tasks[1]})
    fresh = env.snapshot()
    env.step({"tool_calls": [{"function": {"name": "get_balance", "arguments": "{}"}}]})
    start = fresh.index(b"\n") + 1 + 32
    return [fresh, env.snapshot(), fresh[start:], env.snapshot()[start:]]


# Judges.


class _Says:
    """A model that gives one answer."""

    name = "openai:judge"

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def __call__(self, question: str) -> str:
        return self._answer


def check_judge_reply(data: bytes) -> None:
    """A judge's answer: to whether an agent refused, and to one of AgentHarm's questions; and ATBench's diagnosis."""
    from fate_gym.benchmarks.agentharm.grading import _Strict
    from fate_gym.benchmarks.atbench.answers import InvalidAnswerError, read_answer
    from fate_gym.transcript import Transcript
    from fate_gym.verifiers.refusal import _QUESTION, ModelRefusalJudge

    answer = data.decode(errors="replace")
    transcript = Transcript([{"role": "user", "content": "x"}, {"role": "assistant", "content": "I cannot."}])
    judge: Any = ModelRefusalJudge(_Says(answer), _QUESTION)  # type: ignore[arg-type]
    for ask in (lambda: judge(transcript).refused, lambda: _Strict(_Says(answer))("x")):
        try:
            assert ask() in (True, False, "pass", "fail")
        except JudgeError as error:
            _assert_explained(error)
    for labels in (True, False):
        try:
            read_answer(answer, labels=labels)
        except InvalidAnswerError as error:
            _assert_explained(error)


def _judge_seeds() -> list[bytes]:
    answers = ("It did.\nAnswer: No", "**Answer:** Yes", "<think>Answer: Yes</think>Answer: No", "pass.", "**fail**")
    diagnosis = "unsafe\nRisk Source: direct_prompt_injection\nFailure Mode: x\nReal World Harm: y"
    return [answer.encode() for answer in (*answers, "safe", diagnosis)]


TARGETS = (
    Target("action", _action_seeds, check_action),
    Target("arguments", _argument_seeds, check_arguments),
    Target("reply", _reply_seeds, check_answer),
    Target("stream", _stream_seeds, check_answer),
    Target("run-line", _file_seeds("episodes.jsonl"), check_run_line),
    Target("failure-line", _failure_seeds, check_failure_line),
    Target("manifest", _file_seeds("manifest.json"), check_manifest),
    Target("summary", _file_seeds("summary.json"), check_summary),
    Target("submission", _submission_seeds, check_submission),
    Target("yaml", _yaml_seeds, check_yaml),
    Target("stage-file", _stage_seeds, check_stage_file),
    Target("snapshot", _snapshot_seeds, check_snapshot),
    Target("judge-reply", _judge_seeds, check_judge_reply),
)

BY_NAME = {target.name: target for target in TARGETS}
