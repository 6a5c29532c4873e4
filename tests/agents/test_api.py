"""The API agent against a real server: what it sends, what it reads, when it tries again, what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from misbehaving import Fault, Records, Refusal, Settings, serve

from fate_gym.actions import read_action
from fate_gym.agents._pricing import check_prices, cost, shipped_prices
from fate_gym.agents.api import DEFAULT_MAX_TOKENS, OpenAIAgent
from fate_gym.errors import ContextOverflowError, ProviderError, QuotaError, UsageError
from fate_gym.rollout import Reply
from fate_gym.serving import (
    Completion,
    NotFoundError,
    Pacer,
    Redactor,
    RetryPolicy,
    TransientError,
    UnusableError,
    public_url,
)
from fate_gym.serving._completions import read_completion
from fate_gym.serving._failures import ServerError, failure
from fate_gym.task import Task

OBSERVATION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Grüße 🙂"}],
    "tools": [{"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}],
}
TASK = Task("toy/one", "benign", "toy", "one")
LOCAL = "http://127.0.0.1:9/v1"


def saying(**message: Any) -> Callable[[Any], Awaitable[Any]]:
    async def policy(request: Any) -> Any:
        return message

    return policy


def ask(settings: Settings, *, observation: dict[str, Any] = OBSERVATION, **options: Any) -> tuple[Reply, Records]:
    """One reply of an agent with quick retries, and what the server saw."""
    with serve(settings) as (url, records):

        async def main() -> Reply:
            agent = OpenAIAgent("m", **{"base_url": url, "backoff_seconds": 0.001, "timeout": 60.0, **options})
            try:
                return await agent.start(TASK, seed=7).act(observation)
            finally:
                await agent.aclose()

        return asyncio.run(main()), records


def check(settings: Settings, *, tools: bool = False, **options: Any) -> Records:
    with serve(settings) as (url, records):

        async def main() -> None:
            agent = OpenAIAgent("m", **{"base_url": url, "timeout": 60.0, **options})
            try:
                await agent.check(tools=tools)
            finally:
                await agent.aclose()

        asyncio.run(main())
    return records


def test_the_observation_and_the_options_are_sent_as_they_are() -> None:
    options = {"temperature": 0.5, "max_tokens": 9, "reasoning_effort": "low", "parallel_tool_calls": False}
    reply, records = ask(Settings(saying(content="hi")), **options, seed=3, extra_body={"top_p": 0.5})
    assert records.last == {"model": "m", **OBSERVATION, **options, "seed": 10, "top_p": 0.5}
    assert records.complaints == []
    message = {"role": "assistant", "content": "hi", "finish_reason": "stop"}
    assert reply == Reply(message, {"prompt_tokens": 100, "completion_tokens": 10}, 1, finish_reason="stop")


def test_without_options_only_the_limit_is_added() -> None:
    _, records = ask(Settings(saying(content="hi")))
    assert records.last == {"model": "m", **OBSERVATION, "max_tokens": DEFAULT_MAX_TOKENS}
    _, records = ask(
        Settings(saying(content="hi")), observation={"messages": OBSERVATION["messages"]}, parallel_tool_calls=True
    )
    assert set(records.last) == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize("odd", ["\ud800 alone", 2**70, {"deep": ["\udfff", -(2**64)]}])
def test_what_orjson_does_not_write_is_sent_all_the_same(odd: Any) -> None:
    _, records = ask(Settings(saying(content="hi")), extra_body={"top_p": odd})
    assert records.last == {"model": "m", **OBSERVATION, "max_tokens": DEFAULT_MAX_TOKENS, "top_p": odd}


CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"far": true, "deep": [1, "é"]}'}}
JUNK: list[dict[str, Any]] = [
    {"content": None},
    {"content": "I would call look({})"},
    {"content": "a", "tool_calls": [CALL, {**CALL, "id": "b"}]},
    {"content": None, "tool_calls": [{**CALL, "function": {"name": "nothing", "arguments": "{broken"}}]},
    {"content": None, "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": ""}}]},
    {"content": None, "refusal": "I will not."},
    {"content": "so", "reasoning_content": "hmm"},
]


@pytest.mark.parametrize("message", JUNK)
def test_what_a_model_does_wrong_is_left_in_the_message(message: dict[str, Any]) -> None:
    reply, _ = ask(Settings(saying(**message)))
    reason = "tool_calls" if "tool_calls" in message else "stop"
    assert reply.message == {"role": "assistant", **message, "finish_reason": reason}
    assert reply.attempts == 1


@pytest.mark.parametrize("message", [junk for junk in JUNK if not {"refusal", "reasoning_content"} & set(junk)])
def test_a_stream_reads_as_the_whole_message(message: dict[str, Any]) -> None:
    reply, records = ask(Settings(saying(**message)), stream=True)
    read = {**reply.message, "content": reply.message["content"] or None, "finish_reason": None}
    assert read == {"role": "assistant", **message, "finish_reason": None}
    assert records.last["stream_options"] == {"include_usage": True}
    assert reply.usage == {"prompt_tokens": 100, "completion_tokens": 10}


def test_usage_holds_what_the_server_gave() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": None,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": None,
    }
    body = {"choices": [{"message": {"content": "x"}}], "usage": usage}
    completion = read_completion(body, LOCAL, Redactor(None, LOCAL))
    assert completion == Completion({"content": "x"}, {"prompt_tokens": 5, "cached_tokens": 2})


@pytest.mark.parametrize("body", ["<html>", None, [], {}, {"choices": None}, {"choices": [None]}, {"choices": [{}]}])
def test_what_is_no_completion_is_unusable(body: Any) -> None:
    with pytest.raises(UnusableError):
        read_completion(body, LOCAL, Redactor(None, LOCAL))


def test_cost_is_known_only_where_the_price_is() -> None:
    usage = {"prompt_tokens": 1e6, "completion_tokens": 2e6, "cached_tokens": 5e5}
    table = {"m": {"input": 2.0, "output": 10.0, "cached": 1.0}, "m-2024-05-13": {"input": 1.0, "output": 1.0}}
    assert cost("m", usage, table) == pytest.approx(1.0 + 20.0 + 0.5)
    assert cost("m-2025-01-01", usage, table) == cost("m", usage, table)
    assert cost("m-2024-05-13", usage, table) == pytest.approx(3.0)
    assert cost("m-mini", usage, table) is None
    assert cost("m", {"prompt_tokens": 1}, table) is None
    check_prices(shipped_prices())
    with pytest.raises(ValueError, match="must hold input, output"):
        OpenAIAgent("m", base_url=LOCAL, prices={"m": {"input": 1.0}})


def test_cost_stands_in_the_reply_or_not_at_all() -> None:
    prices = {"m": {"input": 1.0, "output": 1.0}}
    assert ask(Settings(saying(content="x")), prices=prices)[0].usage["cost_usd"] == pytest.approx(110e-6)
    assert "cost_usd" not in ask(Settings(saying(content="x")))[0].usage


def test_a_server_that_hints_is_obeyed() -> None:
    started = time.perf_counter()
    reply, records = ask(Settings(saying(content="hi"), forced=[Fault.RATE_LIMIT_HINTED], retry_after="1"))
    assert time.perf_counter() - started >= 1.0
    assert (reply.attempts, records.requests) == (2, 2)


def test_waits_double_with_full_jitter_up_to_a_cap() -> None:
    policy = RetryPolicy(max_attempts=6, backoff_seconds=2.0)
    for attempt, bound in ((1, 2), (2, 4), (4, 16), (30, 60)):
        waits = [policy.wait(attempt, None) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * bound or bound == 60
        assert 0.9 * bound < max(waits) <= bound
    hinted = [policy.wait(5, 10.0) for _ in range(100)]
    assert 10 <= min(hinted) <= max(hinted) <= 12
    assert 600 <= policy.wait(1, 1e6) <= 602


def test_requests_are_spaced_evenly_over_all_sessions() -> None:
    async def main() -> list[float]:
        pacer, times = Pacer(per_minute=1200), []

        async def session() -> None:
            for _ in range(2):
                await pacer.turn()
                times.append(time.monotonic())

        await asyncio.gather(*(session() for _ in range(4)))
        return times

    times = asyncio.run(main())
    assert len(times) == 8
    assert all(time - times[0] >= 0.05 * turn - 0.005 for turn, time in enumerate(times))


def meaning(status: int | None, body: Any, headers: dict[str, str] | None = None) -> Exception:
    """What an error of a server means."""
    return failure(ServerError.read(status, json.dumps(body).encode()), LOCAL, headers or {})


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


OVERFLOWS: list[tuple[int, Any]] = [
    (400, error("anything", code="context_length_exceeded")),
    (400, error("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens")),
    (400, {"object": "error", "message": "This model's maximum context length is 8 tokens.", "code": 400}),
    (400, error("The decoder prompt (length 900) is longer than the maximum model length of 512.", code=400)),
    (400, error("request (9 tokens) exceeds the available context size (8 tokens)", type="exceed_context_size_error")),
    (400, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000")),
    (400, error("prompt is too long: 210000 tokens > 200000 maximum")),
]


@pytest.mark.parametrize(("status", "body"), OVERFLOWS)
def test_context_overflow_is_known_by_its_code_or_words(status: int, body: Any) -> None:
    assert isinstance(meaning(status, body), ContextOverflowError)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, error("temperature must be at most 2"), ProviderError),
        (400, error("max_tokens is too large: this model supports at most 16384 completion tokens"), ProviderError),
        (401, error("Incorrect API key provided", code="invalid_api_key"), ProviderError),
        (403, error("no"), ProviderError),
        (404, error("The model `m` does not exist", code="model_not_found"), NotFoundError),
        (413, {"detail": "too large"}, ProviderError),
        (422, error("no"), ProviderError),
        (429, error("You exceeded your current quota", code="insufficient_quota"), QuotaError),
        *((status, error("later"), TransientError) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
        (429, error("tokens per minute: context of 3 requests"), TransientError),
    ],
)
def test_each_status_is_retried_or_not(status: int, body: Any, kind: type[Exception]) -> None:
    outcome = meaning(status, body)
    assert type(outcome) is kind
    assert str(outcome).startswith(f"HTTP {status} from {LOCAL}")
    assert "\n" not in str(outcome)


def test_an_error_for_good_is_not_retried() -> None:
    with pytest.raises(ProviderError, match=r"HTTP 404 .* no such model") as caught:
        ask(Settings(saying(content="x"), refuse=(404, {"message": "no such\n model"})))
    assert caught.value.attempts == 1


def test_attempts_count_what_came_before_an_error_for_good() -> None:
    async def request(errors: list[Exception]) -> None:
        raise errors.pop(0)

    with pytest.raises(ProviderError) as caught:
        asyncio.run(RetryPolicy(6, 0.0).run(request, [TransientError("a"), TransientError("b"), ProviderError("c")]))
    assert caught.value.attempts == 3


def test_a_key_is_needed_for_openai_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="set the environment variable OPENAI_API_KEY"):
        OpenAIAgent("gpt-4o-mini")
    with pytest.raises(ValueError, match="OTHER_KEY"):
        OpenAIAgent("gpt-4o-mini", api_key_env="OTHER_KEY")
    monkeypatch.setenv("OTHER_KEY", "sk-given-here")
    assert OpenAIAgent("gpt-4o-mini", api_key_env="OTHER_KEY").name == "openai:gpt-4o-mini"
    _, records = ask(Settings(saying(content="x")), api_key_env="OTHER_KEY")
    assert "Bearer sk-given-here" in records.head
    _, records = ask(Settings(saying(content="x")))
    assert "Bearer unused" in records.head


def test_openai_gets_the_newer_name_of_the_token_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-only")
    monkeypatch.setenv("OPENAI_BASE_URL", LOCAL)
    agent = OpenAIAgent("gpt-4o-mini", max_tokens=3)
    assert agent._body(OBSERVATION, None, agent._limit)["max_completion_tokens"] == 3
    assert agent._client.url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url must look like"),
        ({"base_url": ""}, "base_url must look like"),
        ({"base_url": LOCAL, "timeout": 0}, "timeout must be positive"),
        ({"base_url": LOCAL, "max_attempts": 0}, "max_attempts must be positive"),
        ({"base_url": LOCAL, "requests_per_minute": -1}, "requests_per_minute must be positive"),
        ({"base_url": LOCAL, "model": ""}, "needs a name"),
    ],
)
def test_wrong_settings_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        OpenAIAgent(**{"model": "m", **options})
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(UsageError, match="pip install aiohttp"):
        OpenAIAgent("m", base_url=LOCAL)


def test_a_login_and_a_query_in_the_address_are_used_but_not_shown() -> None:
    with serve(Settings(saying(content="x"))) as (url, records):

        async def main() -> None:
            given = url.replace("http://", "http://user:p%40ss@") + "?api-version=2025"
            agent = OpenAIAgent("m", base_url=given)
            await agent.reply(OBSERVATION)
            await agent.aclose()

        asyncio.run(main())
    assert "POST /v1/chat/completions?api-version=2025 " in records.head
    assert "basic dxnlcjpwqhnz" in records.head.lower()
    assert "bearer" not in records.head.lower()
    assert public_url("https://user:pass@host:1/v1?key=x#y") == "https://host:1/v1"


def test_a_login_in_netrc_never_stands_in_for_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-given-here")
    _, records = ask(Settings(saying(content="x")))
    assert "Bearer sk-given-here" in records.head


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Settings(saying(content="x"))) as (url, records):
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "elsewhere.example")

        async def main(base_url: str) -> None:
            agent = OpenAIAgent("m", base_url=base_url)
            try:
                await agent.reply(OBSERVATION)
            finally:
                await agent.aclose()

        asyncio.run(main("http://model.example:1/v1"))
    assert records.head.startswith("POST http://model.example:1/v1/chat/completions ")


def test_check_passes_a_good_and_a_busy_server() -> None:
    assert check(Settings(saying(content="ready")), temperature=0.3).last["temperature"] == 0.3
    for fault in (Fault.RATE_LIMIT, Fault.UNAVAILABLE):
        assert check(Settings(saying(content="ready"), forced=[fault])).requests == 1
    assert check(Settings(saying(content="ready"), forced=[Fault.HANG]), timeout=1.0).requests == 1


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ((401, {"message": "Incorrect API key"}), "HTTP 401 .*Incorrect API key"),
        ((404, {"message": "The model `m` does not exist"}), "HTTP 404 .*does not exist"),
        ((400, {"message": "temperature is not supported"}), "HTTP 400 .*not supported"),
    ],
)
def test_check_refuses_what_no_retry_mends(refuse: tuple[int, dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=f"^openai:m cannot be used: {message}") as caught:
        check(Settings(saying(content="x"), refuse=refuse))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words", "is_hinted"),
    [
        ("", "Not Found", True),
        ("/v1/chat/completions", "", True),
        ("", "The model `m` does not exist", False),
        ("/v1/", "Not Found", False),
    ],
)
def test_a_wrong_path_is_told_with_what_it_usually_is(path: str, words: str, is_hinted: bool) -> None:
    with serve(Settings(saying(content="x"), refuse=(404, {"message": words}))) as (url, _):

        async def main() -> None:
            agent = OpenAIAgent("m", base_url=url.removesuffix("/v1") + path)
            try:
                await agent.check()
            finally:
                await agent.aclose()

        with pytest.raises(UsageError, match="HTTP 404 from http://127") as caught:
            asyncio.run(main())
    hint = "(base_url usually ends in /v1; /chat/completions is added to it)"
    assert str(caught.value).endswith(hint) == is_hinted


def test_check_refuses_an_address_where_nobody_listens_or_someone_else() -> None:
    with pytest.raises(UsageError, match="no chat completion"):
        check(Settings(saying(content="x"), forced=[Fault.HTML_200]))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def main() -> None:
            agent = OpenAIAgent("m", base_url=f"http://127.0.0.1:{port}/v1")
            try:
                await agent.check()
            finally:
                await agent.aclose()

        with pytest.raises(UsageError, match=f"no connection to http://127.0.0.1:{port}/v1") as caught:
            asyncio.run(main())
        assert "ssl:" not in str(caught.value)


def test_an_agent_serves_again_after_it_was_closed() -> None:
    with serve(Settings(saying(content="x"))) as (url, records):
        agent = OpenAIAgent("m", base_url=url)

        async def main() -> None:
            await agent.reply(OBSERVATION)
            await agent.aclose()

        asyncio.run(main())
        asyncio.run(main())
    assert records.requests == 2


def picky(part: str, words: str, **message: Any) -> Callable[[Any], Any]:
    """A model whose server refuses, in these words, every request that holds a text."""

    async def policy(request: Any) -> Any:
        if part in json.dumps(request):
            raise Refusal(400, {"message": words})
        return message

    return policy


def test_the_default_limit_is_given_up_where_the_server_refuses_it() -> None:
    words = "max_tokens is too large: 8192. This model supports at most 4096 completion tokens."
    reply, records = ask(Settings(picky("max_tokens", words, content="hi")))
    assert (reply.message["content"], reply.attempts) == ("hi", 2)
    assert "max_tokens" not in records.last
    with pytest.raises(ProviderError, match="too large"):
        ask(Settings(picky("max_tokens", words, content="hi")), max_tokens=9000)


def test_the_default_limit_is_given_up_where_the_context_has_no_room_for_it() -> None:
    words = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
    reply, _ = ask(Settings(picky("max_tokens", words, content="hi")))
    assert (reply.message["content"], reply.attempts) == ("hi", 2)
    with pytest.raises(ContextOverflowError):
        ask(Settings(picky("max_tokens", words, content="hi")), max_tokens=9000)


def test_a_field_that_a_server_sends_and_refuses_is_left_out_from_then_on() -> None:
    answer = {"content": "", "reasoning": "hm", "tool_calls": [CALL]}
    with serve(Settings(picky('"reasoning"', "messages.1: property 'reasoning' is unsupported", **answer))) as (
        url,
        records,
    ):

        async def main() -> list[Reply]:
            agent = OpenAIAgent("m", base_url=url)
            replies = []
            for _ in range(2):
                session = agent.start(TASK, seed=0)
                messages = list(OBSERVATION["messages"])
                for number in range(2):
                    reply = await session.act({**OBSERVATION, "messages": messages})
                    turn = read_action(reply.message, number, {"a"} if number else set())
                    result = {"role": "tool", "tool_call_id": turn.calls[0].id, "content": "far"}
                    messages += [turn.message, result]
                    replies.append(reply)
            await agent.aclose()
            return replies

        replies = asyncio.run(main())
    assert [reply.attempts for reply in replies] == [1, 2, 1, 1]
    assert "reasoning" not in records.last["messages"][1]
    assert records.complaints == []


def test_check_asks_with_a_system_message_and_a_tool() -> None:
    words = "auto tool choice requires --enable-auto-tool-choice"
    with pytest.raises(UsageError, match=f"^openai:m cannot be used: HTTP 400 .*{words}"):
        check(Settings(picky('"tools"', words, content="ready")), tools=True)
    assert "tools" not in check(Settings(picky('"tools"', words, content="ready"))).last
    with pytest.raises(UsageError, match="system role not supported"):
        check(Settings(picky('"system"', "system role not supported", content="ready")))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": '<tool_call>\n{"name": "look"}\n</tool_call>'}, "tool calls stood in the text of replies"),
        ({"content": "fine"}, ""),
    ],
)
def test_a_run_ends_with_a_hint_where_the_server_is_not_set_up(
    message: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask(Settings(saying(**message)))
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)


def test_a_first_request_that_overflows_at_once_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ContextOverflowError):
        ask(Settings(saying(content="x"), forced=[Fault.OVERFLOW] * 2))
    assert "was refused as too long" in caplog.text


def test_a_secret_in_a_reply_is_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk/secret+0123")
    said = {"content": "the key is sk/secret+0123", "x": ["sk%2Fsecret%2B0123"], "tool_calls": [CALL]}
    reply, _ = ask(Settings(saying(**said)))
    assert (reply.message["content"], reply.message["x"]) == ("the key is [redacted]", ["[redacted]"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_other_host_answers_in_the_models_place(status: int) -> None:
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        agent = OpenAIAgent("m", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_attempts=1, timeout=60.0)

        async def ask() -> None:
            try:
                await agent.reply(OBSERVATION)
            finally:
                await agent.aclose()

        with pytest.raises(ProviderError, match=f"HTTP {status}"):
            asyncio.run(ask())
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/v1/chat/completions"]
