"""A local model against a real vLLM on the same episodes: `make test-vllm`; FATE_GYM_VLLM names its command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import vllm_server

from fate_gym.agents import Agent
from fate_gym.agents.api import OpenAIAgent
from fate_gym.agents.local import LocalAgent
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.trainers.tasks import sample

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
SMOLLM2 = Path(os.environ.get("FATE_GYM_SMOLLM2_DIR", _CACHE / "fate-gym" / "smollm2-135m-instruct"))
TEMPLATE = Path(__file__).parents[2] / "agents" / "chat_templates" / "hermes.jinja"
NEW_TOKENS = 128

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(vllm_server.COMMAND is None, reason="FATE_GYM_VLLM names no vLLM"),
    pytest.mark.skipif(not (SMOLLM2 / "model.safetensors").exists(), reason="`make smollm2` gets the weights"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other count as processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds() -> float:
    """Processor time of this process and its children: what else the machine does counts for neither side."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))


def play(agent: Agent) -> tuple[list[Episode], float]:
    """Plays 20 episodes, 16 at once, and returns them with the processor time that they took."""
    plan = Plan([TaskSet(env_args={"suite": suite}, limit=10) for suite in ("banking", "slack")], 0)

    async def main() -> tuple[list[Episode], float]:
        # Loads the model, or greets the server.
        await agent.check()
        before = seconds()
        episodes = await sample(plan, agent, list(plan.items), concurrency=16)
        taken = seconds() - before
        await agent.aclose()
        return episodes, taken

    return asyncio.run(main())


def test_whole_episodes_take_not_much_more_than_at_a_vllm(tmp_path: Path) -> None:
    options = f"--served-model-name smollm2 --chat-template {TEMPLATE} --enable-auto-tool-choice"
    options += " --tool-call-parser hermes --max-model-len 8192 --dtype bfloat16 --max-num-seqs 16"
    one_core = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with vllm_server.serve(SMOLLM2, tmp_path / "log", *options.split(), **one_core) as url:
        served = OpenAIAgent("smollm2", base_url=url, temperature=0.0, max_tokens=NEW_TOKENS, timeout=3600)
        theirs, their_time = play(served)
    local = LocalAgent(str(SMOLLM2), chat_template="hermes", dtype="bfloat16", max_new_tokens=NEW_TOKENS)
    ours, our_time = play(local)
    print(f"\nprocessor time of 20 episodes: {our_time:.1f} s here, {their_time:.1f} s at a vLLM and here")
    assert all(episode.status == "ok" for episode in (*ours, *theirs))
    # Both read the same texts. In bfloat16 what they write may differ after a while, so only first turns are compared.
    short = [pair for pair in zip(ours, theirs, strict=True) if all(len(episode.actions) == 1 for episode in pair)]
    assert short
    assert all(one.usage["prompt_tokens"] == other.usage["prompt_tokens"] for one, other in short)
    assert our_time < 2 * their_time
