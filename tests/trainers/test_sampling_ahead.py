"""Rollouts of the next step that are sampled during an update: when, with which weights, and what they cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shop_policy
import torch
from token_server import TokenServer, serve_tokens

from fate_gym.errors import FateGymError
from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.algorithms.trl_trainer import PFPOTrainer
from fate_gym.trainers.policy import LoraSettings
from fate_gym.trainers.server import ServerSampler, ServerSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OPTIONS = {"max_new_tokens": 8}
STEPS = 4
LONG = 300.0
"""Seconds after which a test fails that would wait for ever."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


@pytest.fixture
def optimise(base: Path, tmp_path: Path) -> Any:
    """Optimises at a server, and returns the records of the steps."""

    def optimise(server: TokenServer, name: str, *, overlap: bool, on_step: Any = None, **changes: Any) -> Any:
        sampler = ServerSampler(
            ServerSettings(server.url, overlap=overlap, max_attempts=1), str(base), OPTIONS, tmp_path / name
        )
        fields = {"steps": STEPS, "groups": 2, "group_size": 4, "refills": 0, "learning_rate": 5e-2, "save_every": 1}
        plan = shop_policy.shop()
        optimise_policy(
            str(base),
            plan,
            plan.items,
            PFPOSettings(**{**fields, **changes}),
            out := tmp_path / name,
            sampler=sampler,
            lora=LoraSettings(rank=4, alpha=8),
            agent_options=OPTIONS,
            on_step=on_step,
        )
        return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]

    return optimise


class Observer:
    """Notes when updates and requests happen, and has each wait for the other where they should overlap.

    Steps count from 0. The k-th weights, of before update k, are known at the server by their name; the rollouts that
    they sample are those of step k + 1, but for step 0, whose weights are also those of step 1.

    Args:
        server: The server.
        patience: Seconds for which the server holds a request back until the update has begun that it should overlap.
    """

    def __init__(self, server: TokenServer, patience: float, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.batches: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = []
        self._began, self._asked = ([threading.Event() for _ in range(STEPS)] for _ in range(2))
        self._patience = patience
        self._answer = server.completions
        self._names: list[str] = []
        self._refuses = False
        server.completions = self._hold  # type: ignore[method-assign]
        patch.setattr(PFPOTrainer, "compute_loss", self._around(PFPOTrainer.compute_loss))
        patch.setattr(
            PFPOTrainer,
            "_generate_and_score_completions",
            self._noting(PFPOTrainer._generate_and_score_completions),
        )

    def _hold(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self._names:
            number = len(self._names)
            self._names.append(body["model"])
            self.events.append(f"asked with weights {number}")
            self._asked[number].set()
            self._refuses = number > 0 and not self._began[number].wait(self._patience)
        return (400, {"error": {"message": "no update has begun"}}) if self._refuses else self._answer(body)

    def _around(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        def observed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            step = trainer.state.global_step
            self.events.append(f"update {step} begins")
            self._began[step].set()
            loss = compute_loss(trainer, *args, **kwargs)
            # The first step's weights had been asked for before; the last step has none to sample ahead.
            assert step in (0, STEPS - 1) or self._asked[step].wait(LONG)
            self.events.append(f"update {step} ends")
            return loss

        return observed

    def _noting(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        earlier: dict[str, torch.Tensor] = {}

        def noting(trainer: Any, inputs: Any) -> Any:
            batch = generate(trainer, inputs)
            present = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
            learned = log_probs(trainer, batch)
            trainer.model.load_state_dict(earlier, strict=False)
            self.batches.append((batch, log_probs(trainer, batch), learned))
            trainer.model.load_state_dict(present, strict=False)
            earlier.update(present)
            return batch

        return noting


def log_probs(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """What the trainer's weights make of the tokens of a batch, 0 on those that the policy did not write."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, batch["completion_ids"].shape[1])
    return found[0] * written(batch)


def written(batch: dict[str, Any]) -> torch.Tensor:
    return batch["tool_mask"] * batch["completion_mask"]


def test_the_server_samples_the_next_step_during_an_update(
    base: Path, optimise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_tokens(base) as server:
        seen = Observer(server, LONG, monkeypatch)
        steps = optimise(server, "overlapping", overlap=True)
    # Each waited for the other: no update ended before the server was asked for the next step's rollouts, and none of
    # them was answered before the update had begun.
    for update in range(1, STEPS - 1):
        begins, asked, ends = (
            seen.events.index(event)
            for event in (f"update {update} begins", f"asked with weights {update}", f"update {update} ends")
        )
        assert max(begins, asked) < ends
    assert "asked with weights 3" not in seen.events
    for step, (batch, sampled, learned) in zip(steps, seen.batches, strict=True):
        # The trainer's own weights are those before the update; those that sampled are one step older, and the first
        # step's the same.
        assert torch.allclose(batch["sampling_per_token_logps"] * written(batch), sampled, atol=1e-4)
        assert torch.allclose(batch["old_per_token_logps"] * written(batch), learned, atol=1e-4)
        ratios = (learned - sampled).sum(-1).exp()
        expected = ratios * (ratios <= 3)
        assert batch["importance_sampling_ratio"].flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-3)
        assert step["ratio"] == pytest.approx(expected.mean().item(), rel=1e-3)
        assert step["cut"] == pytest.approx((ratios > 3).float().mean().item())
        assert ((ratios - 1).abs().max() > 1e-2) == (step["step"] > 1)


def test_without_overlap_the_server_is_asked_after_each_update(
    base: Path, optimise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that waits until the update has begun waits in vain, however long.
    with serve_tokens(base) as server:
        seen = Observer(server, 0.1, monkeypatch)
        with pytest.raises(FateGymError, match=r"no rollout of step 2 .* no update has begun"):
            optimise(server, "in turn", overlap=False)
    assert seen.events == ["asked with weights 0", "update 0 begins", "update 0 ends", "asked with weights 1"]


class Killed(Exception):
    pass


class Meter:
    """Counts what a server gave.

    Attributes:
        tokens: Sampled tokens.
        seeds: Those of first turns, each the mark of an episode.
    """

    def __init__(self, server: TokenServer) -> None:
        self.tokens, self.seeds = 0, list[int]()
        self._answer, self._first = server.completions, 0
        server.completions = self._count  # type: ignore[method-assign]

    def _count(self, body: dict[str, Any]) -> tuple[int, Any]:
        status, answer = self._answer(body)
        self.tokens += len(answer["choices"][0]["token_ids"])
        # The first prompt of all is a first turn; later ones are longer.
        self._first = self._first or len(body["prompt"])
        if len(body["prompt"]) <= self._first:
            self.seeds.append(body["seed"])
        return status, answer


def test_what_is_sampled_ahead_is_paid_for_once_and_its_place_decides_it(base: Path, optimise: Any) -> None:
    with serve_tokens(base) as server:
        meter = Meter(server)
        whole = optimise(server, "whole", overlap=True, steps=9, tokens=200)
    # Nothing was sampled for a step that the tokens did not suffice for.
    assert 3 <= len(whole) < 9
    assert meter.tokens == sum(step["tokens"] for step in whole)
    assert len(set(meter.seeds)) == len(meter.seeds) == sum(step["rollouts"] for step in whole)

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            raise Killed

    with serve_tokens(base) as server:
        other = Meter(server)
        with pytest.raises(Killed):
            optimise(server, "killed", overlap=True, steps=9, tokens=200, on_step=kill)
        # What was on its way has ended with the training.
        assert not [one.name for one in threading.enumerate() if one.name.startswith("fate-gym-")]
        resumed = optimise(server, "killed", overlap=True, steps=9, tokens=200)
    # The kill lost the second step, which no checkpoint had yet, and what was sampled ahead of the third.
    assert [step["step"] for step in resumed] == list(range(1, len(resumed) + 1))
    assert resumed[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-3)
    steps = min(len(whole), len(resumed))
    assert set(meter.seeds[: 8 * steps]) <= set(other.seeds)
    assert len(set(other.seeds)) == 8 * len(resumed)
    # It begins again with rollouts of its own weights, which need no correction.
    assert whole[1]["ratio"] != pytest.approx(1.0, abs=1e-4)
    assert resumed[1]["ratio"] == pytest.approx(1.0, abs=1e-4)
