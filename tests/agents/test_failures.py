"""What the words of servers mean: whose fault an error is, how long to wait, when a run ends, what tokens cost."""

from __future__ import annotations

import datetime
import email.utils
import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.errors import ContextOverflowError, NoReplyError, ProviderError, QuotaError
from fate_gym.serving import ModelFaultError, TransientError
from fate_gym.serving._failures import ServerError, failure, kind_of_finish
from fate_gym.serving._usage import MOST_TOKENS, read_usage
from fate_gym.serving._waits import asked_wait, read_time

URL = "http://127.0.0.1:9/v1"


def meaning(status: int | None, body: Any, headers: dict[str, str] | None = None) -> Exception:
    return failure(ServerError.read(status, json.dumps(body).encode()), URL, headers or {})


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


OVERFLOWS = {
    "OpenAI": (400, error("any words", code="context_length_exceeded")),
    "OpenAI, words": (400, error("This model's maximum context length is 8192 tokens. However, you asked for 9000.")),
    "vLLM, flat": (400, {"object": "error", "message": "This model's maximum context length is 8.", "code": 400}),
    "vLLM, prompt": (400, error("The decoder prompt (length 900) is longer than the maximum model length of 512.")),
    "vLLM, limit": (400, error("'max_tokens' or 'max_completion_tokens' is too large: 20. This model's maximum context length is 40 tokens and your request has 30 input tokens")),  # noqa: E501
    "SGLang": (400, error("The input (9000 tokens) is longer than the model's context length (8192 tokens).")),
    "SGLang, total": (400, error("Requested token count exceeds the model's maximum context length of 8192 tokens.")),
    "llama.cpp": (400, error("request (9 tokens) exceeds the available context size (8 tokens), try increasing it", type="exceed_context_size_error")),  # noqa: E501
    "llama.cpp, while it writes": (500, error("Context size has been exceeded.", code=500)),
    "LM Studio": (400, {"error": "Trying to keep the first 9000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens"}),  # noqa: E501
    "LM Studio, old": (400, {"error": "The number of tokens to keep from the initial prompt is greater than the context length."}),  # noqa: E501
    "Ollama": (400, error("the input length exceeds the context length")),
    "Ollama, prompt": (400, error("prompt too long; exceeded max context length by 12 tokens")),
    "Bedrock": (400, {"message": "Input is too long for requested model."}),
    "Bedrock, window": (400, error("The model returned the following errors: input length and max_tokens exceed context limit: 9 + 2 > 10")),  # noqa: E501
    "Vertex": (400, [error("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", status="INVALID_ARGUMENT")]),  # noqa: E501
    "Mistral": (400, {"object": "error", "message": "Prompt contains 9000 tokens and 0 draft tokens, too large for model with 8192 maximum context length"}),  # noqa: E501
    "Cohere": (400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292."}),  # noqa: E501
    "Together": (422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000")),
    "TGI": (422, error("Input validation error: `inputs` must have less than 4096 tokens. Given: 5000")),
    "xAI": (400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 150000 tokens."}),  # noqa: E501
    "DashScope": (400, error("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]")),
    "Kimi": (400, error("Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)")),
    "Zhipu": (400, error("Prompt 超长", code="1261")),
    "LiteLLM": (400, error("litellm.ContextWindowExceededError: OpenAIException - it is too much", code="400")),
    "Groq": (413, error("Please reduce the length of the messages or completion.", code="context_length_exceeded")),
    "Anthropic": (400, error("prompt is too long: 210000 tokens > 200000 maximum")),
    "OpenRouter": (400, error("This endpoint's maximum context length is 131072 tokens. However, you requested 140000.", code=400)),  # noqa: E501
    "OpenRouter, around another": (400, error("Provider returned error", code=400, metadata={"raw": '{"message": "Input is too long for requested model."}'})),  # noqa: E501
    "inside a 200": (None, error("prompt is too long")),
}  # fmt: skip


@pytest.mark.parametrize("server", OVERFLOWS)
def test_context_overflow_is_known_in_the_words_of_each_server(server: str) -> None:
    assert type(meaning(*OVERFLOWS[server])) is ContextOverflowError


MALFORMED = {
    "Groq": (400, error("Failed to call a function.", code="tool_use_failed", failed_generation="<function=f>{")),
    "Groq, schema": (
        400,
        error("Tool call validation failed: attempted to call tool 'f' which was not in request.tools"),
    ),
    "Groq, gpt-oss": (400, error("Parsing failed.", code="output_parse_failed")),
    "llama.cpp": (500, error("Failed to parse input at pos 12: <tool_call>", code=500, type="server_error")),
    "llama.cpp, later": (500, error("The model produced output that does not match the expected peg-native format")),
    "Ollama": (500, error("error parsing tool call: raw='{\"n\"', err=unexpected end of JSON input", type="api_error")),
    "vLLM, harmony": (400, error("Unexpected token 12606 while expecting start token 200006")),
    "SGLang": (400, error("Failed to parse fc related info to json format!")),
}
FILTERS = {
    "Azure": (400, error("The response was filtered due to the prompt", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"})),  # noqa: E501
    "OpenAI": (400, error("Invalid prompt: it was flagged as potentially violating our usage policy.", code="invalid_prompt")),  # noqa: E501
    "OpenRouter": (403, error("gpt requires moderation. Your input was flagged for \"violence\". No credits were charged.", code=403)),  # noqa: E501
    "xAI": (403, {"code": "denied", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}),
    "DeepSeek": (400, error("Content Exists Risk")),
    "Kimi": (400, error("The request was rejected because it was considered high risk", type="content_filter")),
    "DashScope": (400, error("Input data may contain inappropriate content.", code="data_inspection_failed")),
    "Zhipu": (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}),
    "Anthropic": (400, error("Output blocked by content filtering policy")),
}  # fmt: skip


@pytest.mark.parametrize("server", MALFORMED)
def test_a_call_that_the_server_could_not_parse_is_the_models_fault(server: str) -> None:
    fault = meaning(*MALFORMED[server])
    assert isinstance(fault, ModelFaultError)
    assert fault.kind == "malformed_call"
    assert fault.text == ("<function=f>{" if server == "Groq" else "")


@pytest.mark.parametrize("server", FILTERS)
def test_a_content_filter_is_known_in_the_words_of_each_server(server: str) -> None:
    fault = meaning(*FILTERS[server])
    assert isinstance(fault, ModelFaultError)
    assert fault.kind == "content_filter"


def test_what_a_model_wrote_decides_nothing() -> None:
    """A quoted generation may hold the words of any other error."""
    text = "insufficient_quota, requests per day, content_filter, maximum context length"
    for body in (
        error("Failed to call a function.", code="tool_use_failed", failed_generation=text),
        error(f"Failed to parse input at pos 0: {text}"),
    ):
        fault = meaning(400, body)
        assert isinstance(fault, ModelFaultError)
        assert fault.kind == "malformed_call"


GEMINI_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (429, error("You exceeded your current quota", code="insufficient_quota"), {}),
        (402, error("Insufficient credits"), {}),
        (402, {"error": {"message": "Insufficient Balance"}}, {}),
        (400, error("Your credit balance is too low to access the API"), {}),
        (429, error("Rate limit exceeded: free-models-per-day"), {}),
        (429, error("Rate limit reached on requests per day (RPD): Limit 200, Used 200."), {}),
        (429, error("Rate limit reached on tokens per day (TPD): Limit 9. Please try again in 28m48s."), {}),
        (429, [error("You exceeded your current quota", details=[{"violations": [GEMINI_DAY]}])], {}),
        (429, [error("Quota", details=[{"violations": [GEMINI_DAY]}, {"retryDelay": "17s"}])], {}),
        (429, error("slow down"), {"retry-after": "86400"}),
    ],
)
def test_what_only_money_or_another_day_mends_ends_the_run(status: int, body: Any, headers: dict[str, str]) -> None:
    assert type(meaning(status, body, headers)) is QuotaError


@pytest.mark.parametrize(
    ("status", "body", "seconds"),
    [
        (429, error("Rate limit reached on tokens per day (TPD). Please try again in 7.66s."), 7.66),
        (429, [error("You exceeded your current quota. Please retry in 1.5s.", details=[{"retryDelay": "1.5s"}])], 1.5),
        (429, error("Rate limit reached on requests per min (RPM): Limit 3. Try again in 20s."), 20.0),
        (503, error("The engine is overloaded"), None),
        (500, error("internal error"), None),
    ],
)
def test_what_passes_is_asked_again(status: int, body: Any, seconds: float | None) -> None:
    outcome = meaning(status, body)
    assert type(outcome) is TransientError
    assert outcome.retry_after == seconds


@pytest.mark.parametrize(
    "body",
    [
        error("max_tokens is too large: this model supports at most 16384 completion tokens"),
        error("messages.2: property 'reasoning' is unsupported"),
        error("inputs must be a list of messages"),
        error("This model does not support tools"),
    ],
)
def test_a_wrong_request_is_none_of_these(body: Any) -> None:
    assert type(meaning(400, body)) is ProviderError


def test_words_of_a_server_are_one_short_line() -> None:
    line = str(meaning(400, error("no\n such " + "thing " * 100)))
    assert line.startswith(f"HTTP 400 from {URL}: no such thing")
    assert "\n" not in line
    assert len(line) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "code",
                    "type",
                    "status",
                    "details",
                    "retryDelay",
                    "metadata",
                    "innererror",
                    "detail",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(
    st.none() | st.integers(300, 599),
    JSON,
    st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset"]), st.text()),
)
def test_whatever_an_error_holds_has_a_meaning(status: int | None, body: Any, headers: dict[str, str]) -> None:
    assert isinstance(meaning(status, body, headers), TransientError | NoReplyError)


@given(st.none() | st.integers(300, 599), st.binary(max_size=100))
def test_whatever_bytes_an_error_has_it_has_a_meaning(status: int | None, body: bytes) -> None:
    assert isinstance(failure(ServerError.read(status, body), URL, {}), TransientError | NoReplyError)


def test_finish_reasons_of_a_usual_end_mean_nothing_else() -> None:
    usual = ("stop", "length", "tool_calls", "function_call", "eos", "end_turn", "max_tokens", "tool_use")
    assert {kind_of_finish(reason) for reason in usual} == {None}
    assert kind_of_finish("MALFORMED_FUNCTION_CALL") == "malformed_call"
    assert kind_of_finish("content_filter: PROHIBITED_CONTENT") == "content_filter"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.5", 2.5), ("1.5s", 1.5), ("6m0s", 360), ("120ms", 0.12), ("1h2m3s", 3723), ("2 minutes", 120),
        ("1 minute and 5 seconds", 65), ("20 secs", 20), ("0", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None), ("", None), ("-5", None), ("nan", None), ("1e400", None), ("5 meters", None),
    ],
)  # fmt: skip
def test_a_time_is_read_in_every_form(text: str, seconds: float | None) -> None:
    assert read_time(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "write",
    [
        str,
        lambda moment: str(int(moment * 1000)),
        lambda moment: email.utils.formatdate(moment, usegmt=True),
        lambda moment: datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(),
        lambda moment: datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    ],
    ids=["seconds", "milliseconds", "http", "iso", "iso-z"],
)
def test_a_moment_is_the_time_until_then(write: Callable[[float], str]) -> None:
    sooner = time.time()
    seconds = read_time(write(sooner + 600))
    # Forms without a fraction lose up to a second.
    assert seconds is not None
    assert 600 - 1 - (time.time() - sooner) <= seconds <= 600


@given(st.text() | st.from_regex(r"[0-9.]{0,400}(ms|s|m|h|d)?", fullmatch=True))
def test_a_time_is_none_or_a_finite_number(text: str) -> None:
    seconds = read_time(text)
    assert seconds is None or 0 <= seconds < float("inf")


INFO = {"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}]}}


@pytest.mark.parametrize(
    ("headers", "body", "words", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, INFO, "", 1.5),
        ({"retry-after": "9"}, INFO, "try again in 3s", 9),
        ({"retry-after": "soon"}, INFO, "try again in 3s", 17),
        ({}, [INFO], "", 17),
        ({}, {"error": {"metadata": {"retry_after_seconds": 4}}}, "", 4),
        ({}, None, "Please try again in 6m0s. Visit the page", 360),
        ({}, None, "Retry after 12 seconds", 12),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-requests": "0",
          "x-ratelimit-remaining-tokens": "149984"}, None, "", 1),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}, None, "", 3),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}, None, "", 7),
        ({"x-ratelimit-remaining": "5", "x-ratelimit-reset": "7"}, None, "", None),
        ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2s"}, None, "", 2),
        ({"retry-after": "0"}, None, "", 0),
        ({}, None, "", None),
        ({}, {"error": {"retry_after": float("nan")}}, "", None),
    ],
)  # fmt: skip
def test_a_wait_is_found_wherever_it_is_asked_for(headers: Any, body: Any, words: str, seconds: float | None) -> None:
    assert asked_wait(headers, body, words) == seconds


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
         {"prompt_tokens": 5, "completion_tokens": 7}),
        ({"prompt_tokens": -1, "completion_tokens": 7}, {"prompt_tokens": None, "completion_tokens": 7}),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
         {"prompt_tokens": None, "completion_tokens": None}),
        ({"prompt_tokens": 10**400, "completion_tokens": MOST_TOKENS + 1},
         {"prompt_tokens": None, "completion_tokens": None}),
        ({"prompt_tokens": True, "completion_tokens": "7"}, {}),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": -1},
         {"prompt_tokens": 5, "completion_tokens": 7}),
        (None, {}), ([], {}), ("x", {}),
    ],
)  # fmt: skip
def test_token_counts_that_cannot_be_true_are_no_numbers(usage: Any, counts: Any) -> None:
    read = {name: None if math.isnan(count) else count for name, count in read_usage(usage).items()}
    assert read == counts


def test_reasoning_is_paid_for_wherever_it_is_counted() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 40}}
    inside = {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60, **details}
    beside = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 60, **details}
    silent = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 60}
    assert [read_usage(usage)["completion_tokens"] for usage in (inside, beside, silent)] == [50, 50, 50]
    cached = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 50}}
    assert math.isnan(read_usage(cached)["cached_tokens"])
