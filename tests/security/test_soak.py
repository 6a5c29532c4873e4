"""Many episodes against a server that misbehaves in every way it knows: every outcome right, and nothing piles up.

`FATE_GYM_SOAK` sets how many episodes; `make soak` plays 20,000.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from misbehaving import OUTCOMES, Fault, Message, Outcome, Records, Request, Settings, faults, serve

from fate_gym.agents.api import OpenAIAgent
from fate_gym.episode import Episode
from fate_gym.evaluation import EvalConfig, RunFolder, run_evaluation

EPISODES = int(os.environ.get("FATE_GYM_SOAK", "1200"))
ROUND = 300
"""Episodes of a round; what is left over is counted after each."""
ATTEMPTS = 4
PASSING = [fault for fault in Fault if OUTCOMES[fault] is not Outcome.ENDS_RUN]
TRUNCATING = {fault: OUTCOMES[fault].value for fault in faults(Outcome.OVERFLOW, Outcome.ENDLESS)}
SHIP = {"id": "call_0_0", "type": "function", "function": {"name": "ship", "arguments": '{"parcel": 1}'}}


async def clerk(request: Request) -> Message:
    """Ships the parcel in two turns."""
    if request["messages"][-1]["role"] == "tool":
        return {"content": "Shipped."}
    return {"content": None, "tool_calls": [{**SHIP, "function": dict(SHIP["function"])}]}


@dataclass(frozen=True)
class Left:
    """What is there after a round, when all is closed that a round opens."""

    objects: int
    megabytes: int
    threads: int
    tasks: int

    @staticmethod
    def now() -> Left:
        gc.collect()
        # The allocator's own caches are no leak.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Left(
            objects=len(gc.get_objects()),
            megabytes=pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
            threads=threading.active_count(),
            tasks=len(asyncio.all_tasks()),
        )


async def play_rounds(url: str, folder: Path, rounds: int) -> list[Left]:
    """Plays round after round, of three tasks each many times, with one agent on one loop."""
    # Longer than the server hangs only where it does not hang: a good answer never takes so long.
    agent = OpenAIAgent(
        "m", base_url=url, timeout=2.0, max_attempts=ATTEMPTS, backoff_seconds=0.001, max_tokens=100, stream=False
    )
    left = []
    for number in range(rounds):
        config = EvalConfig(
            env="toy/Parcels-v0", agent=agent.name, out=folder / str(number), repeats=ROUND // 3, concurrency=48
        )
        await run_evaluation(config, agent)
        # It connects again for the next round.
        await agent.aclose()
        left.append(Left.now())
    return left


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def soak(folder: Path, rounds: int) -> tuple[list[Left], Records]:
    chances = dict.fromkeys(PASSING, 0.02)
    # These take the time of a timeout each, or much of the processor's.
    chances |= dict.fromkeys((Fault.HANG, Fault.DRIP, Fault.FOREVER, Fault.HUGE, Fault.BOMB), 0.003)
    with serve(Settings(clerk, faults=chances, hang=20.0)) as (url, records):
        return asyncio.run(play_rounds(url, folder, rounds)), records


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_nothing_piles_up_and_every_outcome_is_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # pytest keeps every record that is logged, one or two a round.
    caplog.set_level(logging.ERROR, "fate_gym")
    soak(tmp_path / "first", rounds=1)
    files = open_files()
    rounds = max(4, -(-EPISODES // ROUND))
    left, records = soak(tmp_path, rounds)
    assert open_files() == files
    print(json.dumps({"episodes": rounds * ROUND, "after_two_rounds": asdict(left[1]), "at_last": asdict(left[-1])}))
    assert records.complaints == []
    assert set(records.counts) == set(PASSING)
    check_outcomes(tmp_path, rounds, records)
    check_flat(left)


def check_flat(left: list[Left]) -> None:
    # The first round fills caches.
    start, end = left[1], left[-1]
    assert (end.threads, end.tasks) == (start.threads, start.tasks)
    assert end.objects - start.objects < 500, (start, end)
    assert end.megabytes - start.megabytes < 32, (start, end)


def check_outcomes(folder: Path, rounds: int, records: Records) -> None:
    outcomes: Counter[str] = Counter()
    attempts = 0
    for number in range(rounds):
        run = RunFolder.read(folder / str(number))
        for episode in run.episodes():
            attempts += episode.attempts
            outcomes[check_scored(episode)] += 1
        for failure in run.failures():
            attempts += failure.attempts
            outcomes[failure.status] += 1
            assert failure.status == "provider_error"
            assert failure.error.startswith(f"gave up after {ATTEMPTS} attempts: ")
            assert not failure.verdict.mask.any()
    print(json.dumps({"outcomes": outcomes, "faults": records.counts, "requests": records.requests}))
    assert sum(outcomes.values()) == rounds * ROUND
    # Two invalid turns use up the turns of this short task; that is rare.
    outcomes.pop("max_turns", None)
    assert set(outcomes) == {"answer", "provider_error", "filtered", "invalid turn", *TRUNCATING.values()}
    for ended in set(TRUNCATING.values()):
        sent = sum(records.counts[fault] for fault in TRUNCATING if TRUNCATING[fault] == ended)
        # On a busy machine an answer may come when the client has already given the request up.
        assert 0.9 * sent <= outcomes[ended] <= sent
    assert outcomes["filtered"] == sum(records.counts[fault] for fault in faults(Outcome.FILTERED))
    # No request is unaccounted for; the client may give one up before the server has read it.
    assert records.requests <= attempts <= 1.02 * records.requests


def check_scored(episode: Episode) -> str:
    """A whole episode has the clerk's score, others that of what they are; returns which it is."""
    verdict = episode.verdict
    assert verdict.mask.any()
    if episode.truncated:
        assert verdict.validity.value == 0.0
        return str(episode.ended)
    assert episode.ended == "answer"
    if episode.content_filtered:
        return "filtered"
    if any(action.get("finish_reason") == "malformed_call" for action in episode.actions):
        assert verdict.vector[:3].tolist() == [1.0] * 3
        assert 0 < verdict.validity.value < 1
        return "invalid turn"
    assert verdict.vector.tolist() == [1.0] * 4
    return "answer"
