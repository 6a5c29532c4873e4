"""Our tasks behind an OpenEnv server, played by OpenEnv's client on loopback. `make test-integrations` runs this."""

from __future__ import annotations

import asyncio
import json
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from snippets import blocks

from fate_gym.agents import load_agent
from fate_gym.errors import FateGymError
from fate_gym.rewards import AXES, Scalarization
from fate_gym.rollout import rollout

openenv = pytest.importorskip("openenv", reason="needs the extra openenv: make test-integrations")

BANKING = {"suite": "banking", "attack": "important_instructions"}
PAIR = "banking/user_task_0/injection_task_0"


@contextmanager
def serve(env_id: str, **options: Any) -> Iterator[str]:
    """Serves an environment on a free port of loopback."""
    import uvicorn

    from fate_gym.integrations.openenv import openenv_app

    server = uvicorn.Server(uvicorn.Config(openenv_app(env_id, **options), port=0, log_level="warning"))
    started = threading.Event()
    startup = server.startup

    async def note(*arguments: Any, **more: Any) -> None:
        await startup(*arguments, **more)
        started.set()

    server.startup = note
    thread = threading.Thread(target=server.run)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def banking() -> Iterator[str]:
    with serve("fate/AgentDojo-v0", **BANKING) as url:
        yield url


async def replay(url: str, actions: list[Any], **reset: Any) -> list[Any]:
    async with openenv.GenericEnvClient(base_url=url) as client:
        results = [await client.reset(**reset)]
        for action in actions:
            results.append(await client.step({"message": action}))
        return results


@pytest.mark.parametrize("agent", ["oracle", "gullible"])
def test_the_client_sees_what_our_own_loop_sees_and_gets_the_same_verdict(banking: str, agent: str) -> None:
    env: Any = gym.make("fate/AgentDojo-v0", **BANKING).unwrapped
    episode = asyncio.run(rollout(env, load_agent(agent), PAIR, seed=0))
    first, *_, last = asyncio.run(replay(banking, episode.actions, task_id=PAIR, seed=0))
    assert first.observation["task_id"] == PAIR
    assert not first.done
    assert first.observation["tools"] == env.reset(options={"task_id": PAIR})[0]["tools"]
    assert last.done
    assert last.observation["messages"] == episode.messages
    assert last.observation["verdict"] == json.loads(json.dumps(episode.verdict.to_json()))
    assert last.observation["reward_vector"] == {name: axis.value for name, axis in episode.verdict.axes.items()}
    assert last.observation["reward_mask"] == dict.fromkeys(AXES, True)
    assert last.observation["injection_reached"] == episode.injection_reached
    scalar = Scalarization(dict.fromkeys(AXES, 1.0))(episode.verdict.vector, episode.verdict.mask)
    assert last.reward == pytest.approx(scalar)


def test_what_cannot_be_read_is_answered_as_ever(banking: str) -> None:
    results = asyncio.run(replay(banking, [{"tool_calls": "?"}, "Done."], index=0))
    assert not results[1].done
    assert results[1].reward is None
    assert results[2].done
    assert results[2].observation["reward_vector"]["validity"] < 1


def test_clients_have_episodes_of_their_own(banking: str) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(*(replay(banking, ["Done."], index=index) for index in range(4)))

    found = [results[-1].observation["task_id"] for results in asyncio.run(both())]
    assert len(set(found)) == 4


def test_tasks_are_listed_where_openenv_asks_for_them(banking: str) -> None:
    import httpx

    post = httpx.post(f"{banking}/AgentDojo-v0/num_tasks", json={"split": "all"})
    assert post.json() == {"num_tasks": 144}
    task = httpx.post(f"{banking}/AgentDojo-v0/task", json={"split": "all", "index": 0}).json()["task"]
    assert task == {"id": PAIR, "index": 0, "suite": "banking", "mode": "attacked"}
    assert httpx.post(f"{banking}/AgentDojo-v0/task", json={"split": "all", "index": 999}).status_code == 400
    schema = httpx.get(f"{banking}/schema").json()
    assert "message" in schema["action"]["properties"]
    assert "reward_mask" in schema["observation"]["properties"]


@pytest.mark.parametrize("reset", [{"task_id": "nowhere"}, {"tusk_id": PAIR}])
def test_a_wrong_reset_is_an_error_that_says_so(banking: str, reset: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"no task 'nowhere'|unknown arguments of reset: tusk_id"):
        asyncio.run(replay(banking, [], **reset))


def test_the_client_of_the_page_runs(banking: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "other-trainers.md"
    (text,) = (block.text for block in blocks(page) if "GenericEnvClient" in block.text)
    text = text.replace("http://127.0.0.1:8000", banking).replace("user_task_0/none", "user_task_0/injection_task_0")
    names: dict[str, Any] = {}
    exec("async def main():\n" + textwrap.indent(text, "    "), names)  # noqa: S102 (a page of ours)
    asyncio.run(names["main"]())
    assert "'security': 1.0" in capsys.readouterr().out


def test_licences_bind_unless_it_is_said_that_nothing_is_trained() -> None:
    from fate_gym.integrations.openenv import openenv_app

    with pytest.raises(FateGymError, match="not to be trained on"):
        openenv_app("toy/Parcels-v0")
    openenv_app("toy/Parcels-v0", purpose="evaluation")
