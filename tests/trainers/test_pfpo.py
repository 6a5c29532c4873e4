"""PFPO on real rollouts of a tiny policy: the hook into TRL, refills, what is learned, and that a kill loses little."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shop_policy
import torch
from trl.trainer.utils import nanstd

from fate_gym.agents.local import LocalAgent
from fate_gym.errors import FateGymError, RunMismatchError
from fate_gym.rewards import AXES
from fate_gym.rollout import Agent, Session
from fate_gym.task import Task
from fate_gym.trainers.algorithms.advantages import advantages
from fate_gym.trainers.algorithms.groups import GroupSampler, schedule
from fate_gym.trainers.algorithms.pfpo import optimise_policy
from fate_gym.trainers.algorithms.rollouts import Rollouts
from fate_gym.trainers.algorithms.settings import PFPOSettings
from fate_gym.trainers.algorithms.trl_trainer import PFPOTrainer, by_rule, trl_config
from fate_gym.trainers.algorithms.update_folder import UpdateFolder
from fate_gym.trainers.policy import LoraSettings, load_policy
from fate_gym.trainers.sampling import LocalSampler

pytestmark = pytest.mark.usefixtures("one_thread")

CALL, RIGHT, WRONG, DONE = "<tool_call>", shop_policy.RIGHT, shop_policy.WRONG, shop_policy.DONE
AGENT = {"max_new_tokens": 8, "max_batch": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_policy.make_shop_policy(tmp_path_factory.mktemp("models") / "shop")


def small(**changes: Any) -> PFPOSettings:
    fields = {"steps": 1, "groups": 2, "group_size": 4, "refills": 0, "learning_rate": 1e-2, "micro_batch": 8}
    return PFPOSettings(**{**fields, **changes})


def trainer_over(
    base: Path, out: Path, settings: PFPOSettings, *, attention: str | None = None, **hooks: Any
) -> PFPOTrainer:
    """The trainer that `optimise` builds, with hooks of a test's own."""
    model, tokenizer = load_policy(base, lora=None, attention=attention)
    plan = shop_policy.shop()
    groups = GroupSampler(
        plan, plan.items, settings.rule, settings.group_size, settings.refills, settings.concurrency, settings.seed
    )
    rollouts = Rollouts(groups, LocalSampler(AGENT), str(base), tokenizer, settings)
    return PFPOTrainer(
        model=model,
        args=trl_config(settings, UpdateFolder(out, {})),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
        **hooks,
    )


def one_batch(trainer: PFPOTrainer) -> dict[str, Any]:
    """What TRL makes of one batch of rollouts."""
    trainer.model.train()
    rows = [dict(row) for row in trainer.train_dataset for _ in range(trainer.num_generations)]
    batch: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return batch


# The hook into TRL.


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 0.0, 0.0]])
def test_trls_own_formula_through_our_hook_gives_trls_advantages(
    base: Path, tmp_path: Path, weights: list[float] | None
) -> None:
    seen: list[torch.Tensor] = []

    def trls(matrix: torch.Tensor, group_size: int) -> torch.Tensor:
        seen.append(matrix)
        sums = (matrix * torch.tensor(weights or [1.0] * 4)).nansum(dim=1)
        groups = sums.view(-1, group_size)
        mean, std = (values.repeat_interleave(group_size) for values in (groups.nanmean(dim=1), nanstd(groups, dim=1)))
        return (sums - mean) / (std + 1e-4)

    settings = small(groups=4, rule="weighted-sum" if weights is None else "security-only")
    hooked = one_batch(trainer_over(base, tmp_path / "a", settings, advantage_rule=trls))
    plain = one_batch(trainer_over(base, tmp_path / "b", settings, advantage_rule=None))
    assert plain["advantages"].abs().max() > 0.5
    assert torch.equal(hooked["advantages"], plain["advantages"])
    for name in ("completion_ids", "tool_mask", "completion_mask", "ref_per_token_logps"):
        assert torch.equal(hooked[name], plain[name])
    (matrix,) = seen
    assert matrix.shape == (16, len(AXES))
    # Benign groups have no security to speak of.
    assert {tuple(row.tolist()) for row in matrix.isnan()} == {(True, False, False, False), (False,) * 4}


def test_our_advantages_take_the_place_of_trls(base: Path, tmp_path: Path) -> None:
    trainer = trainer_over(base, tmp_path, small(groups=4), advantage_rule=by_rule("safe-tchebycheff"))
    batch = one_batch(trainer)
    matrix = trainer._matrix
    assert matrix is not None
    expected = advantages("safe-tchebycheff", np.nan_to_num(matrix.numpy()), ~matrix.isnan().numpy(), 4)
    assert np.abs(expected).max() > 0.1
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-6)
    assert batch["advantages"].dtype == torch.float32


def test_a_changed_trl_is_noticed(base: Path, tmp_path: Path) -> None:
    class Changed(PFPOTrainer):  # type: ignore[misc]
        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            rewards = super()._calculate_rewards(*args, **kwargs)
            self._matrix = rewards[:-1]
            return rewards

    trainer = trainer_over(base, tmp_path, small(), advantage_rule=by_rule("safe-ranks"))
    trainer.__class__ = Changed
    with pytest.raises(FateGymError, match=r"TRL no longer keeps rewards as PFPO reads them: \(7, 4\) for 8 rows"):
        one_batch(trainer)


@pytest.mark.parametrize("rule", ["weighted-sum", "gdpo", "security-only"])
def test_baselines_are_trls_and_ours_agree_with_them(base: Path, tmp_path: Path, rule: str) -> None:
    trainer = trainer_over(base, tmp_path, small(groups=4, rule=rule), advantage_rule=None)
    batch = one_batch(trainer)
    matrix = trainer._matrix
    assert matrix is not None
    ours = advantages(rule, np.nan_to_num(matrix.numpy()), ~matrix.isnan().numpy(), 4)
    # TRL divides by the sample's deviation; GDPO's whitening takes the factor out again.
    factor = 1.0 if rule == "gdpo" else (3 / 4) ** 0.5
    assert np.abs(ours).max() > 0.5
    assert batch["advantages"].tolist() == pytest.approx(ours * factor, abs=2e-3)


def test_the_learner_sees_what_was_sampled(base: Path, tmp_path: Path) -> None:
    settings = small(temperature=0.7, passes=2, micro_batch=4)
    trainer = trainer_over(base, tmp_path, settings, advantage_rule=None)
    batch = one_batch(trainer)
    assert trainer.args.gradient_accumulation_steps == 2
    written = batch["tool_mask"] * batch["completion_mask"] == 1
    assert 0 < written.sum() < batch["completion_mask"].sum()
    sampled, learned = batch["sampling_per_token_logps"][written], batch["old_per_token_logps"][written]
    # Temperature, positions and ids: any that differed would show.
    assert torch.allclose(sampled, learned, atol=1e-4)
    assert (sampled < -0.1).any()
    tokenizer = trainer.processing_class
    texts = {tokenizer.decode(token) for token in batch["completion_ids"][written]}
    assert texts <= {CALL, "</tool_call>", RIGHT, WRONG, DONE, "<|im_end|>"}
    assert trainer.model.training


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_read_once_changes_no_number(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    trainer = trainer_over(base, tmp_path, small(passes=2), attention=attention, advantage_rule=None)
    batch = one_batch(trainer)
    lengths = batch["completion_mask"].sum(dim=1)
    assert (lengths < lengths.max()).any()
    trainer.current_gradient_accumulation_steps = 1
    read: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )

    def loss_and_gradient(compute: Any) -> list[torch.Tensor]:
        trainer.model.zero_grad()
        loss = compute(trainer.model, batch)
        loss.backward()
        return [loss.detach(), *(weight.grad.clone() for weight in trainer.model.parameters())]

    ours = loss_and_gradient(trainer._compute_loss)
    monkeypatch.delattr(PFPOTrainer, "_get_per_token_logps_and_entropies")
    plain = loss_and_gradient(trainer._compute_loss)
    assert plain[-1].abs().max() > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, plain, strict=True))
    # Eager attention takes masks of another kind, so that rows are read one by one there.
    assert read[0] < read[1] / (2 if attention == "sdpa" else 1)


def test_rows_that_begin_alike_share_a_micro_batch(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_over(base, tmp_path, small(micro_batch=2), advantage_rule=by_rule("safe-ranks"))
    whole = one_batch(trainer)
    monkeypatch.setattr(trainer, "_generate_and_score_completions", lambda inputs: whole)
    batches = []
    for step in range(4):
        trainer._step = step
        batches.append(trainer._prepare_inputs([]))
    names = ("prompt_ids", "completion_ids", "completion_mask", "advantages", "ref_per_token_logps")

    def rows(batch: dict[str, Any]) -> list[str]:
        return [str([batch[name][row].tolist() for name in names]) for row in range(len(batch["advantages"]))]

    learned = [row for batch in batches for row in rows(batch)]
    assert sorted(learned) == sorted(rows(whole))
    ids = [row for batch in batches for row in torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1).tolist()]
    assert ids == sorted(ids)
    assert len(set(map(str, ids))) > 1


# Groups.


class Broken(Agent):
    """An agent that never answers."""

    name = "broken"

    def start(self, task: Task, seed: int) -> Session:
        raise RuntimeError("no weights today")


@pytest.fixture(scope="module")
def sampler() -> GroupSampler:
    plan = shop_policy.shop()
    return GroupSampler(plan, plan.items, "safe-tchebycheff", 4, refills=3, concurrency=16, seed=0)


def over(base: Path) -> LocalAgent:
    return LocalAgent(str(base), temperature=1.0, **AGENT)


def test_groups_without_a_signal_are_sampled_anew_from_other_tasks(tmp_path: Path) -> None:
    import dataclasses

    # Ships the wrong parcel where nothing is wrong with that, and so teaches nothing on the benign task.
    always = shop_policy.make_shop_policy(tmp_path, {**shop_policy.SCRIPT, "\n": [DONE]})
    plan = shop_policy.shop()
    dead = GroupSampler(plan, plan.items, "safe-tchebycheff", 4, refills=3, concurrency=16, seed=0)
    agent = over(always)
    groups, tally = asyncio.run(dead.draw(agent, [0, 1], step=0, first_slot=0))
    assert not any(group.signal for group in groups)
    assert (tally.signal, tally.refilled, tally.rollouts) == (0, 6, 32)
    _, tally = asyncio.run(dataclasses.replace(dead, refills=0).draw(agent, [0, 1], step=0, first_slot=0))
    assert (tally.refilled, tally.rollouts, tally.unscored) == (0, 8, 0)
    assert tally.counts.tolist() == [4, 8, 8, 8]


def test_a_slot_decides_its_samples_whoever_samples_it(base: Path, sampler: GroupSampler) -> None:
    agent = over(base)
    together, tally = asyncio.run(sampler.draw(agent, [0, 1, 1, 0], step=3, first_slot=0))
    apart = [
        asyncio.run(sampler.draw(agent, [task], step=3, first_slot=slot)) for slot, task in enumerate([0, 1, 1, 0])
    ]
    for group, (alone, _) in zip(together, apart, strict=True):
        assert np.array_equal(group.vectors, alone[0].vectors, equal_nan=True)
        for one, other in zip(group.trajectories, alone[0].trajectories, strict=True):
            assert one is not None
            assert other is not None
            assert one.completion_ids == other.completion_ids
    assert sum(alone.rollouts for _, alone in apart) == tally.rollouts
    lengths = {len(made.completion_ids) for group in together for made in group.trajectories if made}
    assert len(lengths) > 1
    other_step, _ = asyncio.run(sampler.draw(agent, [0, 1, 1, 0], step=4, first_slot=0))
    assert [g.vectors.tolist() for g in other_step] != [g.vectors.tolist() for g in together]


def test_rollouts_that_cannot_be_scored_teach_nothing(base: Path, sampler: GroupSampler, tmp_path: Path) -> None:
    class Silent(LocalSampler):
        """Samples with an agent that never answers."""

        def learner(self, trainer: Any, policy: str, **options: Any) -> contextlib.AbstractContextManager[Agent]:
            return contextlib.nullcontext(Broken())

    plan = shop_policy.shop()
    with pytest.raises(FateGymError, match=r"no rollout of step 1 could be scored; one of them: .*no weights today"):
        optimise_policy(str(base), plan, plan.items, small(), tmp_path, lora=None, sampler=Silent(AGENT))

    class Moody(Agent):
        """Answers in every other episode."""

        name = "moody"

        def __init__(self) -> None:
            self.inner = over(base)

        def start(self, task: Task, seed: int) -> Session:
            return (self.inner if seed % 2 else Broken()).start(task, seed)

    groups, tally = asyncio.run(sampler.draw(Moody(), [0, 1, 0, 1], step=0, first_slot=0))
    unscored = sum(int(np.isnan(group.vectors).all(axis=1).sum()) for group in groups)
    assert 0 < unscored <= tally.unscored
    for group in groups:
        for made, vector in zip(group.trajectories, group.vectors, strict=True):
            assert (made is None) == bool(np.isnan(vector).all())


def test_tasks_come_round_in_whole_passes() -> None:
    order = schedule(5, steps=4, groups=5, seed=0)
    assert len(order) == 20
    for start in range(0, 20, 5):
        assert sorted(order[start : start + 5]) == list(range(5))
    assert order != schedule(5, steps=4, groups=5, seed=1)
    assert schedule(5, steps=1, groups=3, seed=0) == order[:3]


# The stage.


@pytest.mark.parametrize("lora", [LoraSettings(rank=8, alpha=16), None])
def test_a_policy_learns_not_to_obey(base: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    settings = small(steps=4, groups=4, learning_rate=3e-2 if lora else 1e-2, micro_batch=64, refills=1)
    plan = shop_policy.shop()
    seen: list[dict[str, Any]] = []
    numbers = optimise_policy(
        base, plan, plan.items, settings, tmp_path, lora=lora, agent_options=AGENT, on_step=seen.append
    )
    before, after = (shop_policy.share_of(policy, CALL, WRONG) for policy in (base, tmp_path))
    assert 0.4 < before < 0.6
    assert after < before - 0.15
    assert [record["step"] for record in seen] == [1, 2, 3, 4]
    assert seen == [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert seen[-1]["kl"] > 0
    assert all(0 < record["seconds_sampling"] < record["seconds"] for record in seen)
    assert numbers["rollouts"] == sum(record["rollouts"] for record in seen) >= 64
    assert numbers["rollouts"] == 64 + 4 * numbers["refilled"]
    assert set(numbers["vector"]) == set(AXES)
    assert (tmp_path / "adapter").exists() == (lora is not None)
    assert optimise_policy(base, plan, plan.items, settings, tmp_path, lora=lora, agent_options=AGENT) == numbers
    with pytest.raises(RunMismatchError, match="  items: stored"):
        optimise_policy(base, plan, plan.items[:1], settings, tmp_path, lora=lora, agent_options=AGENT)


REFUSAL = "I cannot help with that request."
BOTH = f"{RIGHT}</tool_call>\n<tool_call>{WRONG}"
OBEYS_OR_REFUSES = {
    "\n": [CALL, REFUSAL],
    CALL: [BOTH],
    BOTH: ["</tool_call>"],
    "</tool_call>": ["<|im_end|>"],
    REFUSAL: ["<|im_end|>"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "refuses_more"), [("safe-tchebycheff", True), ("safe-ranks", True), ("gdpo", False)])
def test_where_only_obeying_and_refusing_exist_pfpo_refuses(tmp_path: Path, rule: str, refuses_more: bool) -> None:
    policy = shop_policy.make_shop_policy(tmp_path / "policy", OBEYS_OR_REFUSES)
    plan = shop_policy.shop("shop/ship-attacked")
    settings = small(steps=6, groups=4, group_size=8, learning_rate=5e-3, rule=rule, micro_batch=32)
    out = tmp_path / "out"
    numbers = optimise_policy(
        policy, plan, plan.items, settings, out, lora=None, agent_options={**AGENT, "max_new_tokens": 12}
    )
    assert numbers["unscored"] == 0
    before, after = (shop_policy.share_of(folder, "\n", REFUSAL) for folder in (policy, out))
    assert (after > before + 0.05) if refuses_more else (after < before - 0.05)


def test_gradient_checkpointing_changes_no_numbers(base: Path, tmp_path: Path) -> None:
    lora = LoraSettings(rank=8, alpha=16)
    plan = shop_policy.shop()
    plain, sparing = (
        optimise_policy(base, plan, plan.items, settings, tmp_path / name, lora=lora, agent_options=AGENT)
        for name, settings in (("plain", small()), ("sparing", small(gradient_checkpointing=True)))
    )
    assert plain["rollouts"] == sparing["rollouts"]
    first, second = (json.loads((tmp_path / name / "steps.jsonl").read_text()) for name in ("plain", "sparing"))
    assert first["grad_norm"] > 0
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("passes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_training_ends_as_an_unbroken_one(
    base: Path, tmp_path: Path, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(steps=3, passes=passes, save_every=1, micro_batch=4, refills=1)
    plan = shop_policy.shop()

    def train(name: str, **options: Any) -> dict[str, Any]:
        out = tmp_path / name
        return optimise_policy(base, plan, plan.items, settings, out, lora=None, agent_options=AGENT, **options)

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 2 * passes:
            raise Killed

    whole = train("whole")
    with pytest.raises(Killed):
        train("killed", on_step=kill)
    resumed: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "fate_gym.trainers.algorithms._transformers.save_policy", lambda *args: kill({"step": 2 * passes})
        )
        with pytest.raises(Killed):
            train("killed", on_step=resumed.append)
    assert resumed[0]["step"] == passes + 1
    assert resumed[-1]["step"] == 3 * passes
    numbers = train("killed", on_step=kill)  # All steps are done: none is seen again.
    clock = {"seconds": 0, "seconds_sampling": 0}
    assert {**numbers, **clock} == {**whole, **clock}
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "fair"},
        {"steps": 0},
        {"group_size": 1},
        {"refills": -1},
        {"temperature": 0.0},
        {"beta": -0.1},
    ],
)
def test_settings_need_sensible_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no advantage rule 'fair'; there are: safe-tch|must be"):
        PFPOSettings(**wrong)


def test_tasks_and_processes_must_fit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = shop_policy.shop()
    with pytest.raises(ValueError, match="no tasks"):
        optimise_policy(base, plan, [], small(), tmp_path / "out", lora=None)
    with pytest.raises(ValueError, match="agent_options hold top_p"):
        optimise_policy(base, plan, plan.items, small(), tmp_path / "out", lora=None, agent_options={"top_p": 0.9})
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="groups=2 do not divide among 3 processes"):
        trl_config(small(), UpdateFolder(tmp_path, {}))


def test_trl_sends_nothing_home(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.base_trainer as upstream

    def send(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr(upstream, "send_telemetry", send)
    monkeypatch.delenv("CI", raising=False)
    trainer_over(base, tmp_path, small(), advantage_rule=None)
