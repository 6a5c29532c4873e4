"""The tiny base policy: what it is trained on is what it samples from, and a kill loses little."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fate_gym.actions import read_action
from fate_gym.agents.local import LocalAgent
from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError
from fate_gym.rollout import rollout
from fate_gym.trainers.tiny import BaseReport, Mixture, TinySettings, build_base, read_base
from fate_gym.trainers.tiny.cloning import EncodedEpisode, plan_batches
from fate_gym.trainers.tiny.demonstrations import ScriptedEpisode, play
from fate_gym.trainers.tiny.tokenizer import chat_format, encode, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TinySettings(
    suites=("banking",),
    attacks=("tool_knowledge",),
    exclude=("*/user_task_[2-9]/*", "*/injection_task_[4-9]"),
    vocab_size=512,
    hidden_size=16,
    layers=1,
    steps=7,
    tokens_per_step=900,
    warmup_steps=2,
    checkpoint_every=2,
)


def test_a_setting_that_is_not_given_leaves_the_digest_as_it_was_before_it_existed():
    known = {name: value for name, value in SETTINGS.to_json().items() if name != "fold"}
    assert SETTINGS.digest() == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert dataclasses.replace(SETTINGS, fold=0).digest() != SETTINGS.digest()


def repair_prompt(failed: Episode) -> str:
    return f"Try again: {failed.messages[1]['content']}"


@pytest.fixture(scope="module")
def runs() -> list[ScriptedEpisode]:
    return play(SETTINGS, repair_prompt)


@pytest.fixture(scope="module")
def tokenizer(runs: list[ScriptedEpisode]) -> Any:
    return train_tokenizer(runs, SETTINGS.vocab_size, SETTINGS.max_token_length)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    build_base(folder, SETTINGS, repair_prompt=repair_prompt)
    return folder


# The tokenizer.


@given(st.text().filter(lambda text: "<|" not in text))
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_phrases_are_tokens_and_lines_are_not_joined(tokenizer: Any, runs: list[ScriptedEpisode]) -> None:
    vocabulary = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    assert len(vocabulary) == 512
    assert any(" " in token.strip() for token in vocabulary)
    assert not [token for token in vocabulary if "\n" in token.rstrip("\n")]
    assert 12 < max(len(token) for token in vocabulary if not token.startswith("<|")) <= 24


def test_training_has_the_very_ids_of_sampling(tokenizer: Any, runs: list[ScriptedEpisode]) -> None:
    """Turn by turn as `LocalAgent` goes about it, if the policy says what the run says."""
    chat = chat_format(tokenizer)
    for run in {(run.kind, len(run.messages)): run for run in runs}.values():
        turns = [index for index, message in enumerate(run.messages) if message["role"] == "assistant"]
        ids, mask = list(chat.prompt(run.messages[: turns[0]], run.tools)), []
        mask = [0] * len(ids)
        for index in turns:
            before = chat.prompt(run.messages[:index], run.tools)
            written = chat.prompt(run.messages[: index + 1], run.tools)[len(before) : -1]
            message = chat.read(ids, written, run.tools)
            assert read_action(message, 0).message["content"] == run.messages[index]["content"]
            assert calls(message) == calls(run.messages[index])
            assert written[-1] in chat.stop_ids
            ids += written
            mask += [1] * len(written)
            if index != turns[-1]:
                added = chat.continuation(run.messages[: _next(run, index)], index, run.tools, ended=True)
                assert added is not None
                ids += added
                mask += [0] * len(added)
        assert encode(chat, run) == (ids, mask)


def calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    found = [call["function"] for call in message.get("tool_calls", ())]
    return [(call["name"], _object(call["arguments"])) for call in found]


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _next(run: ScriptedEpisode, index: int) -> int:
    """Where the policy's next turn stands."""
    return next(i for i in range(index + 1, len(run.messages)) if run.messages[i]["role"] == "assistant")


@pytest.mark.parametrize(
    "reply",
    [
        '<|call|>get_balance{"a": <|end|>',
        '<|call|>{"a": 1}<|end|>',
        "<|call|><|end|>",
        "Well. <|call|>get_balance",
        "<|call|>get_balance{}<|call|>get_balance<|end|>",
    ],
)
def test_a_malformed_call_never_passes_for_an_answer(tokenizer: Any, runs: list[ScriptedEpisode], reply: str) -> None:
    chat = chat_format(tokenizer)
    prompt = chat.prompt(runs[0].messages[:2], runs[0].tools)
    message = chat.read(prompt, tokenizer.encode(reply, add_special_tokens=False), runs[0].tools)
    turn = read_action(message, 0)
    assert message["parse_error"]
    assert turn.problem or any(call.problem for call in turn.calls)


def test_several_calls_in_a_turn_are_read(tokenizer: Any, runs: list[ScriptedEpisode]) -> None:
    chat = chat_format(tokenizer)
    written = tokenizer.encode('So: <|call|>one{"a": 1}<|call|>two{}<|end|>', add_special_tokens=False)
    message = chat.read(chat.prompt(runs[0].messages[:2], runs[0].tools), written, runs[0].tools)
    assert message["content"].strip() == "So:"
    assert calls(message) == [("one", {"a": 1}), ("two", {})]


# Batches.


def test_batches_follow_the_mixture_and_keep_to_their_size() -> None:
    settings = TinySettings(steps=400, tokens_per_step=300)
    kinds = list(settings.mixture.shares())
    encoded = [EncodedEpisode(kind, [0] * (20 + 7 * i % 90), [1]) for i, kind in enumerate(kinds * 9)]
    batches = plan_batches(encoded, settings)
    assert batches == plan_batches(encoded, settings)
    assert batches != plan_batches(encoded, dataclasses.replace(settings, seed=1))
    assert len(batches) == 400
    assert all(len(batch) * max(len(encoded[i].ids) for i in batch) <= 300 for batch in batches)
    drawn = collections.Counter(encoded[index].kind for batch in batches for index in batch)
    for kind, share in settings.mixture.shares().items():
        assert drawn[kind] / drawn.total() == pytest.approx(share, abs=0.03), kind


def test_a_run_longer_than_a_batch_has_one_of_its_own() -> None:
    settings = TinySettings(steps=3, tokens_per_step=10, mixture=Mixture(benign=1, benign_refused=0, attacked=0))
    assert plan_batches([EncodedEpisode("benign", [0] * 50, [1] * 50)], settings) == [[0]] * 3


def test_a_mixture_asks_for_no_kind_that_is_not_there() -> None:
    encoded = [EncodedEpisode(kind, [0], [1]) for kind in Mixture().shares() if kind != "refused"]
    with pytest.raises(ValueError, match="kinds of episodes that do not exist here: refused"):
        plan_batches(encoded, TinySettings())
    none_refused = Mixture(ignored=0.53, obeyed=0.47)
    assert plan_batches(encoded, TinySettings(mixture=none_refused))


# The base policy.


def test_the_folder_loads_as_an_agent_and_plays(base: Path) -> None:
    agent = LocalAgent(str(base), temperature=1.0, max_new_tokens=24)
    env = gym.make("fate/AgentDojo-v0", suite="banking").unwrapped
    assert isinstance(env, ToolEnv)

    async def main() -> Episode:
        try:
            await agent.check()
            return await rollout(env, agent, env.tasks[0], 0)
        finally:
            await agent.aclose()

    result = asyncio.run(main())
    assert result.status == "ok"
    assert result.trajectory is not None
    assert len(result.trajectory.prompt_ids) < 250


def test_the_report_says_what_was_made_of_what(base: Path, runs: list[ScriptedEpisode]) -> None:
    report = read_base(base)
    assert report is not None
    assert report.settings == SETTINGS.to_json()
    assert report.seen == sorted({run.task_id for run in runs if run.attack})
    assert report.runs == dict(collections.Counter(run.kind for run in runs))
    assert report.loss < 7
    assert not (base / "cloning.pt").exists()


class Killed(Exception):
    pass


def build(folder: Path, settings: TinySettings = SETTINGS, *, kill_at: int = 0) -> tuple[BaseReport, list[int]]:
    """Builds, and lists the steps that were done."""
    steps: list[int] = []

    def on_progress(step: int, total: int, loss: float) -> None:
        steps.append(step)
        if step == kill_at:
            raise Killed

    return build_base(folder, settings, repair_prompt=repair_prompt, on_progress=on_progress), steps


def test_a_killed_cloning_goes_on_from_its_checkpoint_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        build(tmp_path / "base", kill_at=5)
    report, steps = build(tmp_path / "base")
    assert steps == [5, 6, 7]
    whole = read_base(base)
    assert whole is not None
    assert (report.loss, report.tokens) == (whole.loss, whole.tokens)
    left, right = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "base"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_finished_base_is_used_again_and_other_settings_make_another(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    assert build(folder) == (read_base(base), [])
    other = dataclasses.replace(SETTINGS, steps=3)
    with pytest.raises(Killed):
        build(folder, other, kill_at=2)
    assert read_base(folder) is None
    # The checkpoint at hand is of other settings than these.
    assert build(folder)[1] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": "fate-gym/tiny-base/0"}', '{"schema": "fate-gym/tiny-base/1"}']
)
def test_a_damaged_report_is_an_error_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(RunCorruptError, match=r"base\.json.*; or delete .*, and the base policy is made again"):
        build(tmp_path)


# Settings.


@pytest.mark.parametrize("mixture", [Mixture(), Mixture(benign=0.5, attacked=0.5), Mixture(0, 0, 1, 0, 1, 1)])
def test_shares_add_up(mixture: Mixture) -> None:
    assert sum(mixture.shares().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Mixture(benign=1.2), r"shares lie in \[0, 1\]: benign=1.2"),
        (lambda: Mixture(ignored=0.6, obeyed=0.5), "ignored and obeyed are shares of one whole"),
        (lambda: TinySettings(steps=0), "steps must be at least 1, got 0"),
        (lambda: TinySettings(hidden_size=100), "hidden_size must be a multiple of 8"),
        (lambda: TinySettings(suites=()), "at least one suite"),
    ],
)
def test_senseless_settings_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
