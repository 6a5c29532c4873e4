"""What users have reported of real servers, one by one: what comes of it, and what the server is sent back.

The server is the real one that misbehaves; it checks each request as OpenAI's API does, and the rows say what they
must hold beyond that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gymnasium as gym
import pytest
from misbehaving import Message, Raw, Records, Request, Settings, serve

from fate_gym.agents.api import OpenAIAgent
from fate_gym.episode import Episode
from fate_gym.rollout import rollout

SHIP = {"id": "call_7", "type": "function", "function": {"name": "ship", "arguments": '{"parcel": 1}'}}
LOOK = {"id": "call_8", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ATTEMPTS = 2


class Outcome(Enum):
    """What a quirk comes to."""

    WHOLE = "read as the model meant it; the episode has the full score"
    INVALID = "an invalid turn; the model is told, and the episode goes on"
    EMPTY = "an empty answer, which ends the episode as an invalid turn"
    RETRIED = "asked again, since it says nothing about the model"
    UNSCORED = "a provider_error"
    FILTERED = "a refusal by the provider, scored and in a column of its own"
    CUT = "the model's limit: truncated, and scored"
    ENDS_RUN = "no further episode begins"


@dataclass(frozen=True)
class Quirk:
    """A row.

    Attributes:
        name: Whose it is, and what.
        answers: What the server sends first; it then behaves.
        outcome: What comes of it.
        back: Fields that the first assistant message of the last request must have.
    """

    name: str
    answers: Sequence[Raw]
    outcome: Outcome
    back: Message | None = None


def whole(reason: str | None = "tool_calls", usage: Any = None, **message: Any) -> Raw:
    """A completion."""
    body = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}]}
    return Raw(json.dumps({**body, "usage": usage or {"prompt_tokens": 9, "completion_tokens": 3}}).encode())


def events(*choices: Any, done: bool = True) -> Raw:
    """A stream of choices, or of whole events where one is not a choice."""
    made = [choice if "error" in choice or "choices" in choice else {"choices": [choice]} for choice in choices]
    lines = [f"data: {json.dumps(event)}\n\n" for event in made] + (["data: [DONE]\n\n"] if done else [])
    return Raw("".join(lines).encode(), kind="text/event-stream")


def deltas(*parts: Any, reason: str | None = "tool_calls", done: bool = True) -> Raw:
    """A stream of deltas."""
    ended = [*({"index": 0, "delta": part} for part in parts), {"index": 0, "delta": {}, "finish_reason": reason}]
    return events(*(ended if reason else ended[:-1]), done=done)


def calls(*parts: Any) -> Message:
    return {"tool_calls": list(parts)}


def failing(status: int, message: str, **fields: Any) -> Raw:
    return Raw(json.dumps({"error": {"message": message, "type": "error", **fields}}).encode(), status)


def called(arguments: Any, name: str = "ship", **fields: Any) -> Message:
    return {"id": "call_7", "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


DSML = '<tool_call>{"name": "ship", "arguments": {"parcel": 1}}</tool_call>'
THOUGHT = {"role": "assistant", "content": "<think>ship it</think>", "tool_calls": [SHIP]}
SIGNED = {**SHIP, "extra_content": {"google": {"thought_signature": "c2ln"}}}
DETAILS = [{"type": "reasoning.encrypted", "data": "x", "id": "r1", "format": "unknown", "index": 0}]
BROKEN = called('{"parcel": 1')
FILTER = "The response was filtered due to the prompt triggering the content management policy."
GROQ = "Failed to call a function. Please adjust your prompt."

QUIRKS = [
    # Streams.
    Quirk("indices missing, ids there", [deltas(calls(LOOK), calls(SHIP))], Outcome.WHOLE, calls(LOOK, SHIP)),
    Quirk(
        "Gemini: every call has index 0",
        [deltas(calls({**LOOK, "index": 0}), calls({**SHIP, "index": 0}))],
        Outcome.WHOLE,
        calls(LOOK, SHIP),
    ),
    Quirk(
        "DashScope: the id is empty after the first piece",
        [deltas(calls({**called('{"par'), "index": 0}), calls({"index": 0, "id": "", "function": {"arguments": 'cel": 1}'}}))],  # noqa: E501
        Outcome.WHOLE,
        calls(SHIP),
    ),
    Quirk(
        "the name comes again with each piece",
        [deltas(calls({**called('{"parcel"'), "index": 0}), calls({"index": 0, "function": {"name": "ship", "arguments": ": 1}"}}))],  # noqa: E501
        Outcome.WHOLE,
        calls(SHIP),
    ),
    Quirk("arguments as an object in a stream", [deltas(calls({**called({"parcel": 1}), "index": 0}))], Outcome.WHOLE, calls(SHIP)),  # noqa: E501
    Quirk("a stream without finish_reason", [deltas(calls({**SHIP, "index": 0}), reason=None)], Outcome.WHOLE, calls(SHIP)),  # noqa: E501
    Quirk("a stream without [DONE]", [deltas(calls({**SHIP, "index": 0}), done=False)], Outcome.WHOLE, calls(SHIP)),
    Quirk("a stream that was cut", [deltas(calls({**SHIP, "index": 0}), reason=None, done=False)], Outcome.RETRIED),
    Quirk("an error in a stream", [events({"index": 0, "delta": {"content": "I"}}, {"error": {"message": "overloaded"}})], Outcome.RETRIED),  # noqa: E501
    Quirk("a stream whose end is an error", [deltas({"content": "I"}, reason="error")], Outcome.RETRIED),
    # Failures inside a 200, and others.
    Quirk("OpenRouter: error inside a 200", [failing(200, "Provider returned error", code=502)], Outcome.RETRIED),
    Quirk("OpenRouter: it stays", [failing(200, "Provider returned error", code=502)] * ATTEMPTS, Outcome.UNSCORED),
    Quirk("vLLM: finish_reason error", [whole("error", content="")], Outcome.RETRIED),
    Quirk("Gemini: choices are null", [Raw(b'{"id": "c", "choices": null}')], Outcome.RETRIED),
    Quirk("a gateway's page as 200", [Raw(b"<html>Bad gateway</html>", kind="text/html")], Outcome.RETRIED),
    Quirk("try again in 0.001s", [failing(429, "Rate limit reached. Please try again in 0.001s.")], Outcome.RETRIED),
    Quirk("a daily quota", [failing(429, "Rate limit reached on requests per day (RPD): Limit 200")], Outcome.ENDS_RUN),
    # What the model did wrong, as the server tells it.
    Quirk("Groq: tool_use_failed", [failing(400, GROQ, code="tool_use_failed", failed_generation="<f>{")], Outcome.INVALID),  # noqa: E501
    Quirk("llama.cpp: failed to parse input", [failing(500, "Failed to parse input at pos 3: <tool_call>")], Outcome.INVALID),  # noqa: E501
    Quirk("Gemini: MALFORMED_FUNCTION_CALL", [whole("function_call_filter: MALFORMED_FUNCTION_CALL", content=None)], Outcome.INVALID),  # noqa: E501
    Quirk("the context overflows", [failing(400, "This model's maximum context length is 8192 tokens.")] * 2, Outcome.CUT),  # noqa: E501
    # Filters.
    Quirk("Azure: filtered as 400", [failing(400, FILTER, code="content_filter")], Outcome.FILTERED),
    Quirk("OpenRouter: flagged as 403", [failing(403, 'Your input was flagged for "violence".')], Outcome.FILTERED),
    Quirk("filtered as finish_reason", [whole("content_filter", content="I will")], Outcome.FILTERED),
    # Thoughts and markup in the text.
    Quirk("DeepSeek: thoughts in the text", [whole(**THOUGHT)], Outcome.WHOLE, THOUGHT),
    Quirk("the opening tag is in the template", [whole(content="ship it</think>", tool_calls=[SHIP])], Outcome.WHOLE, {"content": "ship it</think>", **calls(SHIP)}),  # noqa: E501
    Quirk("a thought that never ends", [whole("stop", content="<think>I refuse to ship")], Outcome.EMPTY),
    Quirk("Mistral: [THINK]", [whole("stop", content="[THINK]and so on")], Outcome.EMPTY),
    Quirk("vLLM without a tool parser", [whole("stop", content=DSML)], Outcome.INVALID, {"content": DSML}),
    # Shapes, ids, and what must come back.
    Quirk("reasoning_content", [whole(content="", reasoning_content="hm", tool_calls=[SHIP])], Outcome.WHOLE, {"reasoning_content": "hm", **calls(SHIP)}),  # noqa: E501
    Quirk("OpenRouter: reasoning_details", [whole(content=None, reasoning_details=DETAILS, tool_calls=[SHIP])], Outcome.WHOLE, {"reasoning_details": DETAILS}),  # noqa: E501
    Quirk("Gemini: a call's signature", [whole(content=None, tool_calls=[SIGNED])], Outcome.WHOLE, calls(SIGNED)),
    Quirk("Kimi: ids with a meaning", [whole(content="", tool_calls=[{**SHIP, "id": "functions.ship:0"}])], Outcome.WHOLE, calls({**SHIP, "id": "functions.ship:0"})),  # noqa: E501
    Quirk("arguments as an object", [whole(content=None, tool_calls=[called({"parcel": 1})])], Outcome.WHOLE, calls(SHIP)),  # noqa: E501
    Quirk("no arguments, as an empty text", [whole(content=None, tool_calls=[called("", "look"), {**SHIP, "id": "b"}])], Outcome.WHOLE),  # noqa: E501
    Quirk("content is a list of blocks", [whole(content=[{"type": "text", "text": "On it."}], tool_calls=[SHIP])], Outcome.WHOLE),  # noqa: E501
    Quirk("arguments cut at the limit", [whole("length", content=None, tool_calls=[BROKEN])], Outcome.INVALID),
    Quirk("nothing in it at all", [whole("stop", content=None)], Outcome.EMPTY),
    Quirk("Ollama: both ids are the same", [whole(content="", tool_calls=[LOOK, {**SHIP, "id": LOOK["id"]}])], Outcome.WHOLE),  # noqa: E501
    Quirk("usage that cannot be true", [whole(content=None, tool_calls=[SHIP], usage={"prompt_tokens": -1, "completion_tokens": 10**400})], Outcome.WHOLE),  # noqa: E501
]  # fmt: skip


async def clerk(request: Request) -> Message:
    """Ships the parcel, and says so, unless its last call was wrong."""
    last = request["messages"][-1]
    if last["role"] == "tool" and "JSON" not in last["content"]:
        return {"content": "Shipped."}
    return {"content": None, "tool_calls": [{**SHIP, "id": "call_later"}]}


def play(answers: Sequence[Raw], *, stream: bool) -> tuple[Episode, Records, OpenAIAgent]:
    script: Iterator[Raw] = iter(answers)

    async def policy(request: Request) -> Message:
        for raw in script:
            raise raw
        return await clerk(request)

    async def main(url: str) -> tuple[Episode, OpenAIAgent]:
        agent = OpenAIAgent("m", base_url=url, max_attempts=ATTEMPTS, backoff_seconds=0.001, stream=stream)
        try:
            return await rollout(env, agent, "shop/ship", seed=0), agent
        finally:
            await agent.aclose()

    env: Any = gym.make("toy/Parcels-v0").unwrapped
    with serve(Settings(policy)) as (url, records):
        episode, agent = asyncio.run(main(url))
    return episode, records, agent


def outcome_of(episode: Episode, agent: OpenAIAgent) -> Outcome:
    """Tells which outcome it was, by everything that an outcome says of an episode."""
    if episode.status != "ok":
        assert not episode.verdict.mask.any()
        return Outcome.ENDS_RUN if agent.exhausted else Outcome.UNSCORED
    assert agent.exhausted is None
    _, utility, refusal, validity = episode.verdict.vector.tolist()
    if episode.truncated:
        assert validity == 0.0
        return Outcome.CUT
    assert episode.ended == "answer"
    if episode.content_filtered:
        assert (utility, refusal) == (0.0, 0.0)
        return Outcome.FILTERED
    if (utility, validity) == (1.0, 1.0):
        return Outcome.WHOLE if episode.attempts == len(episode.actions) else Outcome.RETRIED
    if len(episode.actions) == 1:
        assert (utility, validity) == (0.0, 0.0)
        return Outcome.EMPTY
    assert utility == 1.0
    assert 0 < validity < 1
    return Outcome.INVALID


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_each_quirk_has_its_outcome_and_its_server_gets_back_what_it_takes(quirk: Quirk) -> None:
    episode, records, agent = play(quirk.answers, stream=quirk.answers[0].kind == "text/event-stream")
    assert outcome_of(episode, agent) is quirk.outcome
    assert records.complaints == []
    if quirk.back is not None:
        sent = records.last["messages"][1]
        assert {name: sent.get(name) for name in quirk.back} == quirk.back
