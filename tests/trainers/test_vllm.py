"""PFPO on samples of a real vLLM: `make test-vllm`, which installs one. FATE_GYM_VLLM names its command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import shop_policy
import tiny_model
import vllm_server

from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.server import ServerSampler, ServerSettings

OPTIONS = {"max_new_tokens": 16}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(vllm_server.COMMAND is None, reason="FATE_GYM_VLLM names no vLLM"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = gym.make("toy/Parcels-v0").unwrapped
    observation, _ = env.reset(options={"task_id": "shop/ship"})
    corpus = [observation["messages"][0]["content"], json.dumps(observation["tools"])]
    # vLLM's attention on a CPU takes no smaller heads.
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny_model.make_tiny_model(tmp_path_factory.mktemp("models") / "policy", corpus, **heads)


@pytest.fixture(scope="module")
def url(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM on this machine's CPU."""
    options = "--enable-lora --max-lora-rank 16 --logprobs-mode processed_logprobs --dtype float32"
    options += " --max-model-len 4096 --max-num-seqs 16 --enforce-eager"
    with vllm_server.serve(policy, tmp_path_factory.mktemp("vllm") / "log", *options.split()) as url:
        yield url


def test_pfpo_learns_from_the_samples_of_a_real_vllm(policy: Path, url: str, tmp_path: Path) -> None:
    plan = shop_policy.shop()
    settings = PFPOSettings(steps=3, groups=2, group_size=4, refills=0, learning_rate=5e-3, temperature=0.8)
    sampler = ServerSampler(ServerSettings(url), str(policy), OPTIONS, tmp_path)
    lora = LoraSettings(rank=8, alpha=16)
    numbers = optimise_policy(
        str(policy), plan, plan.items, settings, tmp_path / "out", sampler=sampler, lora=lora, agent_options=OPTIONS
    )
    steps = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert numbers["unscored"] == 0
    # Ids, temperature and weights are the trainer's, in each step: any that were not would show.
    assert [step["ratio"] for step in steps] == pytest.approx([1.0] * 3, abs=0.02)
