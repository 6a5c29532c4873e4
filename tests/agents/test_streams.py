"""Reading answers: streamed in any dialect, whole, broken, endless or compressed; always within bounds."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import time
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym.actions import MOST_CALLS
from fate_gym.errors import ContextOverflowError, NoReplyError, ProviderError
from fate_gym.serving import Completion, ModelFaultError, Redactor, TransientError, UnusableError
from fate_gym.serving._completions import LARGEST_BODY, AnswerReader, decompressed
from fate_gym.serving._patience import Patience
from fate_gym.serving._stream import LONGEST_MESSAGE

URL = "http://127.0.0.1:9/v1"


async def arriving(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def read(*chunks: bytes) -> Completion:
    return asyncio.run(AnswerReader(URL, Redactor(None, URL)).read(arriving(chunks)))


def events(*deltas: Any, finish: str | None = "stop", end: str = "data: [DONE]\n\n") -> bytes:
    choices = [{"delta": delta, "finish_reason": None} for delta in deltas]
    choices += [] if finish is None else [{"delta": {}, "finish_reason": finish}]
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices).encode() + end.encode()


def calls(*pieces: Any) -> dict[str, Any]:
    return {"tool_calls": list(pieces)}


def piece(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**fields, "function": function}


FIRST, SECOND = ("send", {"to": "a"}), ("read", {})


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        # One id names one call, whatever the index says.
        ([calls(piece("send", '{"to"', id="a", index=0)), calls(piece(None, ': "a"}', id="a", index=3))], [FIRST]),
        ([calls(piece("send", '{"to": "a"}', id="a", index=0)), calls(piece("read", "{}", id="b", index=0))], [FIRST, SECOND]),  # noqa: E501
        # Without ids the index decides, also as a text or from 1.
        ([calls(piece("send", '{"to"', index="1")), calls(piece("read", "{}", index="2")), calls(piece(None, ': "a"}', index="1"))], [FIRST, SECOND]),  # noqa: E501
        # An id that comes late belongs to the call of its index.
        ([calls(piece("send", '{"to"', index=0)), calls(piece(None, ': "a"}', index=0, id="late"))], [FIRST]),
        # With neither, a piece goes on with the last call, and a name after a whole call begins the next.
        ([calls(piece("send", '{"to"')), calls(piece(None, ': "a"}')), calls(piece("read", "{}"))], [FIRST, SECOND]),
        ([calls(piece("send", '{"to": "a"}'), piece("send", '{"to": "a"}'))], [FIRST, FIRST]),
        ([calls(piece("send", '{"to": "a"}', index=0, id="")), calls(piece("read", "{}", index=0, id=""))], [FIRST, SECOND]),  # noqa: E501
        # A name that comes again is the same name; one in pieces is joined.
        ([calls(piece("send", '{"to"', index=0)), calls(piece("send", ': "a"}', index=0))], [FIRST]),
        ([calls(piece("send", '{"to": "a"}', index=0)), calls(piece("send", "", index=0))], [FIRST]),
        ([calls(piece("se", "", index=0)), calls(piece("nd", '{"to": "a"}', index=0))], [FIRST]),
        # Arguments as an object, and a call that is no list.
        ([calls(piece("send", {"to": "a"}, index=0))], [FIRST]),
        ([{"tool_calls": piece("send", '{"to": "a"}')}], [FIRST]),
        ([{"content": "", "tool_calls": None}, calls(None, 7, piece("read", "{}"))], [SECOND]),
    ],
)  # fmt: skip
def test_the_pieces_of_calls_find_each_other(deltas: list[Any], expected: list[Any]) -> None:
    message = read(events(*deltas)).message
    functions = [call["function"] for call in message["tool_calls"]]
    assert [(function["name"], json.loads(function["arguments"])) for function in functions] == expected


NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(NAMES, st.integers() | st.text(), max_size=3)), min_size=1, max_size=4
)


@given(CALLS, st.sampled_from(["id once", "id always", "index alone", "name always"]), st.integers(1, 7))
def test_every_dialect_of_a_stream_reads_as_the_same_calls(
    expected: list[tuple[str, dict[str, Any]]], dialect: str, size: int
) -> None:
    deltas = []
    for index, (name, arguments) in enumerate(expected):
        text = json.dumps(arguments)
        for start in range(0, len(text), size):
            fields: dict[str, Any] = {"index": index} if dialect != "id always" else {}
            if dialect == "id always" or (dialect == "id once" and start == 0):
                fields["id"] = f"call {index}"
            named = name if start == 0 or dialect == "name always" else None
            deltas.append(calls(piece(named, text[start : start + size], **fields)))
    functions = [call["function"] for call in read(events(*deltas)).message["tool_calls"]]
    assert [(function["name"], json.loads(function["arguments"])) for function in functions] == expected


BODY = events({"role": "assistant", "content": "Grü"}, {"content": "ße"}, calls(piece("send", "{}", id="a", index=0)))


@given(st.lists(st.integers(0, len(BODY)), max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_stream_may_be_cut_into_packets_anywhere(places: list[int], newline: str, blank_lines: bool) -> None:
    body = BODY if blank_lines else BODY.replace(b"\n\n", b"\n")
    body = b": keep-alive\n" + body.replace(b"\n", newline.encode())
    edges = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    completion = read(*(body[start:end] for start, end in itertools.pairwise(edges)))
    assert completion.message["content"] == "Grüße"
    assert completion.message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "send", "arguments": "{}"}}
    ]
    assert completion.finish_reason == "stop"


def test_what_a_provider_adds_to_a_stream_is_kept() -> None:
    details = [{"type": "text", "text": piece, "index": 0} for piece in ("I ", "look")]
    deltas = [
        {"reasoning": "I ", "reasoning_details": details[:1]},
        {"reasoning": "look", "reasoning_details": details[1:]},
    ]
    signed = calls(piece("send", "{}", id="a", index=0, extra_content={"signature": "s"}))
    message = read(events(*deltas, signed)).message
    assert message["reasoning"] == "I look"
    assert message["reasoning_details"] == [{"type": "text", "text": "I look", "index": 0}]
    assert message["tool_calls"][0]["extra_content"] == {"signature": "s"}


def test_content_blocks_in_a_stream_are_text_and_thoughts() -> None:
    blocks = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Do"}]
    message = read(events({"content": blocks}, {"content": "ne."})).message
    assert (message["content"], message["reasoning_content"]) == ("Done.", "hm")


@pytest.mark.parametrize("reason", [None, ""])
def test_a_stream_without_a_reason_ends_with_its_last_event_only(reason: str | None) -> None:
    assert read(events({"content": "Done."}, finish=reason)).message["content"] == "Done."
    with pytest.raises(UnusableError, match="broke off"):
        read(events({"content": "Do"}, finish=reason, end=""))


def test_a_whole_answer_is_read_though_a_stream_was_asked_for() -> None:
    body = json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}]}
    ).encode()
    completion = read(b" \n ", b"\n", body[:9], body[9:])
    assert (completion.message["content"], completion.finish_reason) == ("x", "length")


def whole(reason: str | None = "stop", **fields: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": "I will"}, "finish_reason": reason}
    return json.dumps({"choices": [choice], **fields}).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        *((whole(reason), TransientError) for reason in ("error", "abort", "network_error", "INTERNAL_ERROR")),
        (whole(error={"message": "upstream died", "code": 502}), TransientError),
        (whole(error="upstream died"), TransientError),
        (whole(error={"message": "no such model", "code": 404}), ProviderError),
        (whole(error={"message": "prompt is too long", "code": 400}), ContextOverflowError),
        (whole("model_context_window_exceeded"), ContextOverflowError),
        (events({"content": "I will"}, finish="error"), TransientError),
        (events({"content": "I will"}, finish=None, end='data: {"error": {"code": 503}}\n\n'), TransientError),
        (b"<!DOCTYPE html><html></html>", UnusableError),
        (b"", UnusableError),
        (b"{", UnusableError),
        (b"[1]", UnusableError),
        (b"data: nonsense\n\n", UnusableError),
        (b"data: 7\n\n", UnusableError),
        (b"data: [DONE]\n\n", UnusableError),
        (b'{"choices": []}', UnusableError),
        (b"\xff\xfe", UnusableError),
        (b"[" * 100_000, UnusableError),
    ],
)
def test_what_a_server_does_wrong_is_no_answer(body: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        read(body)
    assert not isinstance(caught.value, ModelFaultError)


@pytest.mark.parametrize("body", [whole("content_filter"), whole("content_filter: SAFETY"), whole("sensitive"), events({"content": "I will"}, finish="content_filter")])  # fmt: skip  # noqa: E501
def test_a_content_filter_is_an_outcome_of_its_own(body: bytes) -> None:
    with pytest.raises(ModelFaultError) as caught:
        read(body)
    assert (caught.value.kind, caught.value.text) == ("content_filter", "I will")


def delta(**fields: Any) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': fields}]})}\n\n".encode()


def calls_with(**fields: Any) -> bytes:
    return delta(tool_calls=[fields])


DEEP = b'{"choices": [{"message": {"tool_calls": ' + b"[" * 100_000

DEEP_EVENT = b'data: {"choices": [{"delta": {"tool_calls": ' + b"[" * 100_000 + b"\n\n"


@pytest.mark.parametrize(
    "body",
    [
        [events({"content": "x" * 1_000_000}, finish=None, end="")] * 5,
        [events(*[calls(piece("f", "{}", id=str(number))) for number in range(MOST_CALLS + 1)])],
        [json.dumps({"choices": [{"message": {"tool_calls": [{}] * (MOST_CALLS + 1)}}]}).encode()],
        [json.dumps({"choices": [{"message": {"content": "x" * (LONGEST_MESSAGE + 1)}}]}).encode()],
        [b'{"choices": [{"message": {"content": "', *([b"x" * 1_000_000] * (LARGEST_BODY // 1_000_000 + 1))],
        [DEEP],
        [DEEP_EVENT],
        [delta(**{f"{number}{'x' * 100_000}": True}) for number in range(50)],
        [calls_with(index=0, **{f"{number}{'x' * 100_000}": True}) for number in range(50)],
        [calls_with(index=0, function={f"{number}{'x' * 100_000}": True}) for number in range(50)],
        [calls_with(index=0, function={f"{number}": ["x" * 100_000]}) for number in range(50)],
        [calls_with(id=f"{number}{'x' * 100_000}") for number in range(50)],
        [calls_with(id="a", index=f"{number}{'x' * 100_000}") for number in range(50)],
    ],
    ids=[
        *("stream", "streamed calls", "calls", "long", "unbounded", "deep", "streamed deep"),
        *("fields", "fields of a call", "fields of a function", "values of a function", "ids", "indices"),
    ],
)
def test_a_reply_beyond_all_bounds_is_the_models(body: list[bytes]) -> None:
    with pytest.raises(ModelFaultError) as caught:
        read(*body)
    assert caught.value.kind == "endless"


def test_what_is_beyond_the_bounds_and_no_completion_is_the_servers() -> None:
    with pytest.raises(UnusableError, match="longer than"):
        read(b'{"x": "', *([b"x" * 1_000_000] * (LARGEST_BODY // 1_000_000 + 1)))
    with pytest.raises(UnusableError, match="event of more than"):
        read(b"data: ", *([b"x" * 1_000_000] * (LARGEST_BODY // 1_000_000 + 1)))


def test_integers_of_any_length_are_read() -> None:
    body = b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"n": 1%s}}}]}}]}'
    assert read(body % (b"0" * 5000)).message["tool_calls"][0]["function"]["arguments"] == {"n": None}


def test_integers_of_any_length_are_read_from_a_stream() -> None:
    event = (
        b'data: {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": {"n": 1%s}}}]}}]}\n\n'
    )
    call = read(event % (b"0" * 5000), b"data: [DONE]\n\n").message["tool_calls"][0]
    assert call["function"]["arguments"] == '{"n": Infinity}'


@pytest.mark.parametrize("lines", [3, 50_000])
def test_an_event_of_many_lines_takes_a_time_that_grows_with_their_number(lines: int) -> None:
    started = time.process_time()
    body = b'data: {"choices": [{"delta": {"content": "x"}}], "x": [0\n' + b"data: ,1\n" * lines + b"data: ]}\n\n"
    assert read(body + b"data: [DONE]\n\n").message["content"] == "x"
    assert time.process_time() - started < 5


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_compressed_body_is_inflated_piece_by_piece(compress: Any) -> None:
    async def sizes() -> list[int]:
        packed = compress(b"x" * 50_000_000)
        encoding = "gzip" if compress is gzip.compress else "deflate"
        return [len(chunk) async for chunk in decompressed(arriving([packed]), encoding)]

    inflated = asyncio.run(sizes())
    assert sum(inflated) == 50_000_000
    assert max(inflated) <= 1_000_000


@pytest.mark.parametrize(("data", "encoding"), [(b"no gzip", "gzip"), (b"x", "br"), (b"x", "zstd")])
def test_a_body_that_cannot_be_inflated_is_the_servers_fault(data: bytes, encoding: str) -> None:
    async def main() -> None:
        async for _ in decompressed(arriving([data]), encoding):
            pass

    with pytest.raises(UnusableError):
        asyncio.run(main())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["choices", "delta", "message", "tool_calls", "function", "name", "arguments", "id", "index", "content", "finish_reason", "error", "usage", "code", "details"]) | st.text(), inner, max_size=4),  # noqa: E501
)  # fmt: skip


@given(st.lists(JSON, max_size=4), st.booleans())
def test_whatever_json_a_server_sends_has_an_outcome(values: list[Any], streamed: bool) -> None:
    bodies = [f"data: {json.dumps(value)}\n\n".encode() for value in values]
    if not streamed:
        bodies = [
            json.dumps({"choices": [{"message": value, "finish_reason": value}]}).encode() for value in values[:1]
        ]
    try:
        completion = read(*bodies)
    except (TransientError, NoReplyError):
        return
    json.dumps(completion.message, allow_nan=False).encode()


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_whatever_bytes_a_server_sends_have_an_outcome(chunks: list[bytes]) -> None:
    with pytest.raises((TransientError, NoReplyError)):
        read(*chunks)


def test_time_in_which_the_process_sleeps_is_no_time_of_the_servers() -> None:
    """A loop that is blocked for longer than the timeout still reads the answer that came meanwhile."""

    async def main() -> str:
        came = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda: (time.sleep(0.3), came.set()))
        async with Patience(0.1):
            await came.wait()
            # What is read takes a few turns of the loop, each of which may have been slept through.
            for _ in range(4):
                await asyncio.sleep(0)
            return "read"

    assert asyncio.run(main()) == "read"


def test_patience_ends() -> None:
    async def main() -> None:
        async with Patience(0.05):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(main())


@pytest.mark.parametrize(("pieces", "goes_on"), [(3, False), (4, True), (40, True)])
def test_a_model_goes_on_if_several_pieces_have_come_lately(pieces: int, goes_on: bool) -> None:
    reader = AnswerReader(URL, Redactor(None, URL), clock=lambda: 10.0)
    with pytest.raises(UnusableError):
        asyncio.run(reader.read(arriving([events(*[{"content": "x"}] * pieces, finish=None, end="")])))
    assert reader.is_arriving(1.0) == goes_on


def test_pieces_of_long_ago_do_not_count() -> None:
    times = iter([0.0] * 8 + [9.9] * 3 + [10.0] * 9)
    reader = AnswerReader(URL, Redactor(None, URL), clock=lambda: next(times))
    with pytest.raises(UnusableError):
        asyncio.run(reader.read(arriving([events(*[{"content": "x"}] * 11, finish=None, end="")])))
    assert not reader.is_arriving(1.0)
