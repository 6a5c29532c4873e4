"""Sampling from a server: the samples of this process, with the present weights, corrected where they differ."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import depot
import pytest
import shop_policy
import torch
import transformers
from token_server import TokenServer, serve_tokens

from fate_gym.agents import Agent
from fate_gym.errors import FateGymError, UsageError
from fate_gym.evaluation.plan import Plan
from fate_gym.trainers.adapters import Adapter, adapters_since, read_adapter, save_sum
from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.sequences import Example
from fate_gym.trainers.algorithms.settings import PFPOSettings, SupervisedSettings
from fate_gym.trainers.algorithms.supervised import learn_examples
from fate_gym.trainers.config import TrainConfig, config_from
from fate_gym.trainers.fate import train
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.sampling import LocalSampler
from fate_gym.trainers.server import ServerSampler, ServerSettings
from fate_gym.trainers.tasks import sample

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"max_new_tokens": 8, "max_batch": 64}
LORA = LoraSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture
def server(base: Path) -> Any:
    with serve_tokens(base) as running:
        yield running


def sampler_of(server: TokenServer, base: Path, out: Path, **settings: Any) -> ServerSampler:
    return ServerSampler(ServerSettings(server.url, max_attempts=3, **settings), str(base), OPTIONS, out)


def tokens(agent: Agent) -> list[tuple[list[int], list[float]]]:
    """Plays the shop once, and returns the token ids and log-probabilities of every episode."""
    plan = shop_policy.shop()
    episodes = asyncio.run(sample(plan, agent, plan.items))
    asyncio.run(agent.aclose())
    problems = [episode.error for episode in episodes if episode.trajectory is None]
    if problems:
        raise FateGymError(str(problems[0]))
    return [(one.trajectory.completion_ids, one.trajectory.logprobs) for one in episodes if one.trajectory]


def same(one: list[tuple[list[int], list[float]]], two: list[tuple[list[int], list[float]]]) -> bool:
    """Whether ids are equal, and log-probabilities but for rounding."""
    if [ids for ids, _ in one] != [ids for ids, _ in two]:
        return False
    return all(a[1] == pytest.approx(b[1], abs=1e-4) for a, b in zip(one, two, strict=True))


def learn(policy: Path, out: Path) -> Path:
    """One update with adapters, strong enough to be seen in samples."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    ids = tokenizer.convert_tokens_to_ids(["\n", "<tool_call>", shop_policy.RIGHT, "</tool_call>", "<|im_end|>"])
    example = Example(ids[:1], ids[1:], [1] * 4)
    settings = SupervisedSettings(learning_rate=0.05, warmup=0.0, epochs=3)
    learn_examples(str(policy), [example], settings, out, lora=LORA)
    return out


@pytest.fixture(scope="module")
def learned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two updates, one after the other."""
    folder = tmp_path_factory.mktemp("updates")
    first = learn(base, folder / "first")
    return first, learn(first, folder / "second")


# What is sampled.


def test_a_server_gives_the_samples_of_this_process_whatever_was_learned(
    server: TokenServer, base: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    served, local = sampler_of(server, base, tmp_path), LocalSampler(OPTIONS)
    found = []
    for policy in (base, *learned):
        options = {"temperature": 1.0, "seed": 3}
        found.append(tokens(served.agent(str(policy), **options)))
        assert same(found[-1], tokens(local.agent(str(policy), **options)))
    assert not same(found[0], found[2])
    # The second policy is the sum of two adapters; of a version that is there already, nothing is sent twice.
    assert len(server.loaded) == 2
    tokens(served.agent(str(learned[1]), temperature=1.0))
    assert len(server.loaded) == 2
    assert len(set(server.asked)) == 3


def test_the_sum_of_adapters_is_what_merging_them_in_turn_gives(
    base: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    adapters = adapters_since(str(base), str(learned[1]))
    assert len(adapters) == 2
    # The second learned nothing in one layer.
    left_out = min(name for name in adapters[1].tensors if "q_proj" in name).rpartition(".lora_")[0]
    kept = {name: tensor for name, tensor in adapters[1].tensors.items() if not name.startswith(left_out)}
    save_sum([adapters[0], Adapter(kept, adapters[1].config)], str(base), tmp_path / "sum")
    summed = read_adapter(tmp_path / "sum")
    assert summed.config["r"] == 8
    for layer in {name.rpartition(".lora_")[0] for name in summed.tensors}:
        a, b = (f"{layer}.lora_{part}.weight" for part in "AB")
        parts = adapters[: 1 if layer == left_out else 2]
        expected = sum(one.scale * one.tensors[b] @ one.tensors[a] for one in parts)
        assert torch.allclose(summed.scale * summed.tensors[b] @ summed.tensors[a], expected, atol=1e-5)
        assert expected.abs().max() > 1e-3


def test_weights_that_no_adapters_lead_to_are_refused(server: TokenServer, base: Path, tmp_path: Path) -> None:
    other = shop_policy.make_shop_policy(tmp_path / "other")
    with pytest.raises(UsageError, match=r"no adapters lead .* give `sampler.reload`"):
        sampler_of(server, base, tmp_path).agent(str(other))


# A server that misbehaves.


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ({"model": "an-older-version"}, "answered with 'an-older-version' where 'fate-"),
        ({"choices": [{"text": "Hi"}]}, "sends no token ids or log-probabilities"),
        (
            {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [0.0]}, "prompt_token_ids": [1]}]},
            "read other tokens than it was sent",
        ),
        ({"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": []}}]}, "do not fit each other"),
        ({"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [None]}}]}, "do not fit each other"),
        ({"choices": []}, "no completion"),
    ],
)
def test_what_is_not_the_policys_own_sample_is_never_learned_from(
    server: TokenServer, base: Path, learned: tuple[Path, Path], tmp_path: Path, says: Any, problem: str
) -> None:
    server.says = says
    settings = ServerSettings(server.url, max_attempts=1)
    with pytest.raises(FateGymError, match=problem):
        tokens(ServerSampler(settings, str(base), OPTIONS, tmp_path).agent(str(learned[0])))


def test_a_server_that_restarts_gets_its_weights_again(
    server: TokenServer, base: Path, learned: tuple[Path, Path], tmp_path: Path
) -> None:
    agent = sampler_of(server, base, tmp_path).agent(str(learned[0]), temperature=1.0)
    completions = server.completions

    def restarts_once(body: dict[str, Any]) -> tuple[int, Any]:
        if len(server.asked) == 3 and len(server.loaded) == 1:
            server.restart()
        return completions(body)

    server.completions = restarts_once  # type: ignore[method-assign]
    found = tokens(agent)
    assert len(server.loaded) == 2
    assert len({name for name, _ in server.loaded}) == 1
    assert same(found, tokens(LocalSampler(OPTIONS).agent(str(learned[0]), temperature=1.0)))


def test_a_server_that_loads_no_adapters_is_named(server: TokenServer, learned: tuple[Path, Path], base: Path) -> None:
    server.load_lora_adapter = lambda body: (404, {"detail": "Not Found"})  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"does not load adapters .*--enable-lora"):
        sampler_of(server, base, learned[0].parent).agent(str(learned[0]))


def test_whole_weights_go_to_the_users_command(server: TokenServer, base: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"w\").write(sys.argv[2])' {note} {{folder}}"
    other = shop_policy.make_shop_policy(tmp_path / "other")
    agent = sampler_of(server, base, tmp_path, model=str(base), reload=command).agent(str(other))
    assert note.read_text() == str(other)
    tokens(agent)
    with pytest.raises(UsageError, match=r"`sampler.reload` ended with 3: no room"):
        sampler_of(server, base, tmp_path, reload="sh -c 'echo no room {folder}; exit 3'").agent(str(other))
    with pytest.raises(ValueError, match=r"reload must hold \{folder\}"):
        ServerSettings(server.url, reload="reload")


# Policy optimisation.


def optimise(base: Path, out: Path, sampler: Any, **changes: Any) -> list[dict[str, Any]]:
    fields = {"steps": 2, "groups": 2, "group_size": 4, "refills": 1, "learning_rate": 1e-2, "micro_batch": 8}
    plan: Plan = shop_policy.shop()
    settings = PFPOSettings(**{**fields, **changes})
    optimise_policy(str(base), plan, plan.items, settings, out, sampler=sampler, lora=LORA, agent_options=OPTIONS)
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_pfpo_samples_each_step_with_the_weights_of_that_step(server: TokenServer, base: Path, tmp_path: Path) -> None:
    local = optimise(base, tmp_path / "local", None)
    served = optimise(base, tmp_path / "served", sampler_of(server, base, tmp_path / "served"))
    assert len(server.loaded) == 2
    for here, there in zip(local, served, strict=True):
        for name in ("vector", "rollouts", "tokens", "refilled", "signal"):
            assert here[name] == there[name]
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-4)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-3)
        # The weights were the trainer's own: the sampler's probabilities are the trainer's.
        assert there["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert there["cut"] == 0
        assert not here.keys() & {"ratio", "cut"}
    # Nothing is kept of the versions before the last one.
    assert len(list((tmp_path / "served" / "served").iterdir())) == 1


@pytest.mark.slow
def test_the_loss_is_corrected_by_the_ratio_of_probabilities(server: TokenServer, base: Path, tmp_path: Path) -> None:
    exact = optimise(base, tmp_path / "exact", sampler_of(server, base, tmp_path / "exact"), steps=1)
    # A sampler that claims a tenth of a nat less for every token: the ratio is e^(0.1 t) for t tokens.
    server.noise = -0.1
    off = optimise(base, tmp_path / "off", sampler_of(server, base, tmp_path / "off"), steps=1)
    assert off[0]["vector"] == exact[0]["vector"]
    assert 1.1 < off[0]["ratio"] < 3
    assert off[0]["grad_norm"] > 1.05 * exact[0]["grad_norm"]
    # Beyond 3, TRL's bound, a sequence counts no more: nothing is left to learn from but the pull of the KL.
    server.noise = -5.0
    lost = optimise(base, tmp_path / "lost", sampler_of(server, base, tmp_path / "lost"), steps=1)
    assert lost[0]["grad_norm"] < 0.01 * exact[0]["grad_norm"]
    assert (lost[0]["ratio"], lost[0]["cut"]) == (0, 1)


# Whole trainings.


def config(base: Path, server: TokenServer | None, **changes: Any) -> TrainConfig:
    settings = depot.settings(base, lora={"rank": 4, "alpha": 8}, **changes)
    return config_from(settings | ({"sampler": {"base_url": server.url}} if server else {}))


@pytest.mark.slow
def test_a_training_that_samples_from_a_server_is_the_one_that_samples_here_and_resumes(
    server: TokenServer, base: Path, tmp_path: Path
) -> None:
    here = train(config(base, None), tmp_path / "here")
    completions = server.completions

    def breaks(body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"error": {"message": "out of order"}}) if len(server.asked) > 40 else completions(body)

    server.completions = breaks  # type: ignore[method-assign]
    with pytest.raises(FateGymError):
        train(config(base, server), tmp_path / "there")
    server.restart()
    server.completions = completions  # type: ignore[method-assign]
    there = train(config(base, server), tmp_path / "there")
    for one, two in zip(here["rounds"], there["rounds"], strict=True):
        assert one["dev"] == two["dev"]
    clock = {"seconds": 0.0}
    assert {**here["budget"], **clock} == {**there["budget"], **clock}


def test_adapters_need_a_training_that_learns_them(base: Path, server: TokenServer) -> None:
    with pytest.raises(ValueError, match=r"without `lora` there are no adapters"):
        config_from({**depot.settings(base), "sampler": {"base_url": server.url}})
