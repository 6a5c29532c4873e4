"""Every fault of a model server has one outcome, and none of them is a score."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from misbehaving import OUTCOMES, Fault, Outcome, Records, Scripted, Settings, faults, serve, tasks_by_prompt

from fate_gym.agents import load_agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.episode import Episode
from fate_gym.errors import ProviderError
from fate_gym.evaluation import EvalConfig, RunFolder, run_evaluation
from fate_gym.rollout import rollout

ATTACKS = (None, "important_instructions")
SMALL = ("banking", "slack")
ALL = ("workspace", "travel", "banking", "slack")
TASK = "banking/user_task_3/none"
PATIENCE = 2.0
"""Seconds for one request of a client that a hang, ten times as long, must not keep."""
PASSING = faults(Outcome.RETRIED, Outcome.HARMLESS, Outcome.OVERFLOW, Outcome.ENDLESS)
TRUNCATING = {fault: OUTCOMES[fault].value for fault in faults(Outcome.OVERFLOW, Outcome.ENDLESS)}


@cache
def scripted(name: str, suites: tuple[str, ...] = SMALL) -> Scripted:
    envs = [gym.make("fate/AgentDojo-v0", suite=list(suites), attack=attack).unwrapped for attack in ATTACKS]
    return Scripted(name, tasks_by_prompt(*envs))


def play(fault: Fault, *, times: int, stream: bool, after: int = 0, **options: Any) -> tuple[Episode, Records]:
    """One episode of the oracle, whose request number `after` meets a fault so many times in a row."""
    env: Any = gym.make("fate/AgentDojo-v0", suite="banking", attack=None).unwrapped
    forced: list[Fault | None] = [None] * after + [fault] * times
    with serve(Settings(scripted("oracle"), forced=forced, hang=10 * PATIENCE)) as (url, records):

        async def main() -> Episode:
            patience = PATIENCE if fault in (Fault.HANG, Fault.DRIP, Fault.FOREVER) else 60.0
            agent = OpenAIAgent(
                "m", base_url=url, stream=stream, timeout=patience, max_attempts=3, backoff_seconds=0.001, **options
            )
            try:
                return await rollout(env, agent, TASK, seed=0)
            finally:
                await agent.aclose()

        return asyncio.run(main()), records


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", faults(Outcome.RETRIED))
def test_a_fault_that_passes_is_retried_and_the_episode_scored(fault: Fault, stream: bool) -> None:
    result, records = play(fault, times=2, stream=stream, after=1)
    assert records.complaints == []
    assert records.counts == {fault: 2}
    assert (result.status, result.ended) == ("ok", "answer")
    assert result.verdict.vector.tolist() == [1.0] * 4
    assert result.attempts == records.requests == len(result.actions) + 2


@pytest.mark.parametrize("fault", [fault for fault in faults(Outcome.RETRIED) if fault not in (Fault.HANG, Fault.DRIP)])
def test_a_fault_that_stays_is_no_score(fault: Fault) -> None:
    result, records = play(fault, times=99, stream=False, after=1)
    assert result.status == "provider_error"
    assert not result.verdict.mask.any()
    assert result.error is not None
    assert result.error.startswith("gave up after 3 attempts: ")
    assert (records.requests, result.attempts) == (4, 4)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", faults(Outcome.OVERFLOW, Outcome.ENDLESS))
def test_what_the_model_cannot_end_truncates_and_is_scored(fault: Fault, stream: bool) -> None:
    result, records = play(fault, times=2, stream=stream, after=1)
    assert (result.status, result.ended, result.truncated) == ("ok", OUTCOMES[fault], True)
    assert result.verdict.utility.value == 0.0
    # A server that says that the context overflows is asked once more without the default limit of tokens.
    assert records.requests == result.attempts == (3 if fault is Fault.OVERFLOW else 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", faults(Outcome.HARMLESS))
def test_oddities_that_can_be_mended_cost_nothing(fault: Fault, stream: bool) -> None:
    result, records = play(fault, times=99, stream=stream)
    assert records.complaints == []
    assert result.verdict.vector.tolist() == [1.0] * 4
    assert result.attempts == records.requests
    ids = [call.id for call in result.calls]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_server_could_not_parse_is_an_invalid_turn(stream: bool) -> None:
    result, records = play(Fault.MALFORMED, times=1, stream=stream)
    assert records.complaints == []
    assert (result.status, result.ended) == ("ok", "answer")
    assert 0 < result.verdict.validity.value < 1
    assert result.attempts == records.requests == len(result.actions)
    assert result.actions[0]["tool_calls"] == "<f>{"
    # The server is told in short words of a turn that it had not sent as a message.
    assert records.last["messages"][2] == {"role": "assistant", "content": result.messages[2]["content"]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", faults(Outcome.FILTERED))
def test_a_content_filter_is_a_refusal_however_it_is_told(fault: Fault, stream: bool) -> None:
    result, records = play(fault, times=1, stream=stream)
    assert (result.status, result.ended, result.content_filtered) == ("ok", "answer", True)
    assert result.verdict.over_refusal_control.value == 0.0
    assert records.requests == result.attempts == 1
    unscored, _ = play(fault, times=1, stream=stream, content_filter="error")
    assert unscored.status == "provider_error"


def test_a_daily_quota_ends_the_run_and_the_next_one_completes_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limit": 8, "concurrency": 2, "attack": (None,)}
    with serve(Settings(scripted("oracle"), forced=[None] * 6 + [Fault.QUOTA] * 99)) as (url, records):
        agent = OpenAIAgent("m", base_url=url)
        summary = run(agent, tmp_path / "run", **settings)
    assert agent.exhausted is not None
    assert "per day" in agent.exhausted
    assert "\n" not in agent.exhausted
    assert records.counts[Fault.QUOTA] <= 2
    assert summary["episodes"]["missing"] >= 4
    with serve(Settings(scripted("oracle"))) as (url, _):
        again = run(_agent_like(agent, url), tmp_path / "run", **settings)
    assert again["episodes"]["scored"] == again["episodes"]["planned"] == 8


def test_a_server_that_is_gone_ends_the_run_and_the_next_one_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"limit": 8, "concurrency": 2, "attack": (None,)}
    with serve(Settings(scripted("oracle"))) as (url, _):
        pass
    patient = OpenAIAgent("m", base_url=url, max_attempts=2, backoff_seconds=0.001)
    assert run(patient, tmp_path / "patient", **settings)["episodes"]["errors"] == 8
    assert patient.exhausted is None  # The outage was a short one.
    monkeypatch.setattr("fate_gym.agents.api._LONGEST_OUTAGE", 0.0)
    agent = OpenAIAgent("m", base_url=url, max_attempts=2, backoff_seconds=0.001)
    summary = run(agent, tmp_path / "run", **settings)
    assert agent.exhausted is not None
    assert agent.exhausted.startswith("gave up after 2 attempts: no connection to http://127.0.0.1:")
    assert summary["episodes"]["missing"] >= 4
    with serve(Settings(scripted("oracle"))) as (url, _):
        again = run(_agent_like(agent, url), tmp_path / "run", **settings)
    assert again["episodes"]["scored"] == again["episodes"]["planned"] == 8


def test_a_server_that_answers_now_and_then_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fate_gym.agents.api._LONGEST_OUTAGE", 0.0)
    for forced in ([Fault.RESET] * 2, [Fault.RESET, Fault.RESET, Fault.HTML_502]):
        with serve(Settings(scripted("oracle"), forced=forced)) as (url, _):
            agent = OpenAIAgent("m", base_url=url, max_attempts=3, backoff_seconds=0.001)
            asyncio.run(_one_reply(agent))
            assert agent.exhausted is None


async def _one_reply(agent: OpenAIAgent) -> None:
    try:
        with contextlib.suppress(ProviderError):
            await agent.reply({"messages": [{"role": "user", "content": "Hello"}]})
    finally:
        await agent.aclose()


def run(agent: Any, out: Path, **settings: Any) -> dict[str, Any]:
    """One evaluation under both attacks."""

    async def main() -> dict[str, Any]:
        try:
            return (await run_evaluation(config, agent)).summary
        finally:
            await agent.aclose()

    fields = {"env_args": {"suite": list(SMALL)}, "attack": ATTACKS, "concurrency": 16, **settings}
    config = EvalConfig(agent=agent.name, out=out, **fields)
    return asyncio.run(main())


def episodes(folder: Path, *, ids: bool = True) -> dict[str, Any]:
    """The scored episodes by key, without what differs behind a server: times, tokens, the raw form of an action."""
    left_out = {"seconds", "usage", "attempts", "actions"}
    found = {}
    for episode in RunFolder.read(folder).episodes():
        kept = {name: value for name, value in episode.to_json().items() if name not in left_out}
        found[episode.key] = kept if ids else json.loads(_without_ids(kept))
    return found


def _without_ids(episode: dict[str, Any]) -> str:
    """Numbers the call ids in the order in which they appear."""
    text = json.dumps(episode)
    for number, call in enumerate(episode["calls"]):
        text = text.replace(f'"{call["id"]}"', f'"id {number}"').replace(f"call {call['id']}:", f"call id {number}:")
    return text


@pytest.mark.parametrize(
    ("name", "suites", "limit", "stream"),
    [
        ("oracle", SMALL, 40, False),
        ("gullible", SMALL, 40, True),
        ("refuser", SMALL, 20, False),
        pytest.param("oracle", ALL, None, False, marks=pytest.mark.slow),
        pytest.param("gullible", ALL, None, True, marks=pytest.mark.slow),
    ],
)
def test_a_policy_behind_http_scores_exactly_what_it_scores_in_process(
    name: str, suites: tuple[str, ...], limit: int | None, stream: bool, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"env_args": {"suite": list(suites)}, "limit": limit}
    with serve(Settings(scripted(name, suites))) as (url, records):
        agent = OpenAIAgent("m", base_url=url, stream=stream)
        summary = run(agent, tmp_path / "http", **settings)
    assert records.complaints == []
    assert summary["episodes"]["errors"] == 0
    run(load_agent(name), tmp_path / "process", **settings)
    assert episodes(tmp_path / "http") == episodes(tmp_path / "process")


@pytest.mark.parametrize(
    ("limit", "repeats", "concurrency"), [(75, 1, 24), pytest.param(None, 7, 48, marks=pytest.mark.slow)]
)
def test_many_faults_at_once_leave_every_score_right(
    limit: int | None, repeats: int, concurrency: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"limit": limit, "repeats": repeats, "concurrency": concurrency}
    out = tmp_path / "run"
    server = Settings(scripted("gullible"), faults=dict.fromkeys(PASSING, 0.03), hang=10 * PATIENCE)
    with serve(server) as (url, records):
        options = {"timeout": PATIENCE, "max_attempts": 4, "backoff_seconds": 0.001, "max_tokens": 1000}
        agent = OpenAIAgent("m", base_url=url, **options)
        summary = run(agent, out, **settings)
    assert records.complaints == []
    assert set(records.counts) == set(PASSING)
    done = summary["episodes"]
    assert done["missing"] == 0
    assert done["errors"] > 0
    assert done["planned"] >= (2000 if limit is None else 100)
    scored, failed = list(RunFolder.read(out).episodes()), list(RunFolder.read(out).failures())
    for ended in set(TRUNCATING.values()):
        sent = sum(records.counts[fault] for fault in TRUNCATING if TRUNCATING[fault] == ended)
        truncated = [episode for episode in scored if episode.ended == ended]
        # On a busy machine an answer may come when the client has already given the request up, above all a large one.
        assert 0 < len(truncated) <= sent
    _check_attempts(scored, failed, records)

    run(load_agent("gullible"), tmp_path / "process", **settings)
    _check_scores(episodes(out, ids=False), episodes(tmp_path / "process", ids=False))

    first = {episode.key for episode in scored}
    with serve(Settings(scripted("gullible"))) as (url, again):
        resumed = run(_agent_like(agent, url), out, **settings)
    assert resumed["episodes"] == {**done, "scored": done["planned"], "errors": 0}
    second = [episode for episode in RunFolder.read(out).episodes() if episode.key not in first]
    assert {episode.key for episode in second} == {failure.key for failure in failed}
    assert again.requests == sum(episode.attempts for episode in second)


def _agent_like(agent: OpenAIAgent, url: str) -> OpenAIAgent:
    """The same model at another address: a run may move with its server."""
    return OpenAIAgent(agent.name.removeprefix("openai:"), base_url=url)


def _check_attempts(scored: list[Any], failed: list[Any], records: Records) -> None:
    """No request beyond the cap, and none that no episode answers for."""
    for episode in scored:
        assert episode.attempts <= 4 * (len(episode.actions) + (episode.ended in TRUNCATING.values()))
    for failure in failed:
        assert failure.status == "provider_error"
        assert failure.error.startswith("gave up after 4 attempts: ")
        assert failure.attempts <= 4 * (len(failure.actions) + 1)
    told = sum(episode.attempts for episode in itertools.chain(scored, failed))
    # No request is unaccounted for. On a busy machine the client may give one up before the server has read it.
    assert records.requests <= told <= 1.01 * records.requests


def _check_scores(served: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whole episodes are those of the policy in process; truncated ones are a beginning of them, scored as such."""
    kinds: Counter[str] = Counter()
    for key, episode in served.items():
        kinds[episode["ended"]] += 1
        if episode["ended"] == "answer":
            assert episode == expected[key]
            continue
        assert episode["ended"] in TRUNCATING.values()
        assert episode["truncated"]
        assert episode["verdict"]["validity"]["value"] == 0.0
        assert episode["messages"] == expected[key]["messages"][: len(episode["messages"])]
    assert min(kinds["answer"], *(kinds[ended] for ended in TRUNCATING.values())) > 0
