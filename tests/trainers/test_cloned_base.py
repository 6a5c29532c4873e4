"""Base policies made by cloning: they are trained on what they would sample, and a kill loses little."""

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
import tiny_model
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fate_gym.actions import read_action
from fate_gym.agents.chat_format import ChatFormat, read_chat_template
from fate_gym.agents.local import LocalAgent
from fate_gym.agents.marks import MARK
from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.errors import RunCorruptError, UsageError
from fate_gym.rollout import rollout
from fate_gym.trainers.cloning import BaseReport, CloningSettings, Mixture, build_base, read_base
from fate_gym.trainers.cloning.demonstrations import ScriptedEpisode, play
from fate_gym.trainers.cloning.encoding import EncodedEpisode, encode
from fate_gym.trainers.cloning.learning import plan_batches
from fate_gym.trainers.cloning.start import start_policy
from fate_gym.trainers.policy import LoraSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = CloningSettings(
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
GIVEN = dataclasses.replace(SETTINGS, start="given", chat_template="hermes_compact", lora=LoraSettings(rank=2))
# The letters of a small test model's tokenizer make long episodes.
GIVEN = dataclasses.replace(GIVEN, context=8192, learning_rate=1e-2)


def test_a_setting_that_is_not_given_leaves_the_digest_as_it_was_before_it_existed():
    later = ("fold", "start", "chat_template", "lora")
    known = {name: value for name, value in SETTINGS.to_json().items() if name not in later}
    assert SETTINGS.digest() == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert dataclasses.replace(SETTINGS, fold=0).digest() != SETTINGS.digest()


def repair_prompt(failed: Episode) -> str:
    return f"Try again: {failed.messages[1]['content']}"


@pytest.fixture(scope="module")
def runs() -> list[ScriptedEpisode]:
    return play(SETTINGS, repair_prompt)


@pytest.fixture(scope="module")
def chat(runs: list[ScriptedEpisode]) -> ChatFormat:
    return start_policy(SETTINGS, runs)[1]


@pytest.fixture(scope="module")
def tokenizer(chat: ChatFormat) -> Any:
    return chat.tokenizer


@pytest.fixture(scope="module")
def toolless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own chat template takes no tools, as that of many small chat models."""
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    folder = tiny_model.make_tiny_model(tmp_path_factory.mktemp("models") / "toolless", chat_template=chatml)
    (folder / MARK).write_text('{"contaminated_by": ["agentharm"]}')
    return folder


@pytest.fixture(scope="module")
def given_base(toolless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A given policy, cloned with adapters."""
    folder = tmp_path_factory.mktemp("given") / "base"
    build_base(folder, from_folder(GIVEN, toolless), repair_prompt=repair_prompt)
    return folder


def from_folder(settings: CloningSettings, folder: Path) -> CloningSettings:
    """The settings with a folder that only a fixture knows."""
    return dataclasses.replace(settings, start=settings.start and str(folder))


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


@pytest.mark.parametrize("settings", [SETTINGS, GIVEN], ids=["from nothing", "given"])
def test_training_has_the_very_ids_of_sampling(
    settings: CloningSettings, toolless: Path, runs: list[ScriptedEpisode]
) -> None:
    """What a policy would read and sample, as `LocalAgent` goes about it, if it says what the run says."""
    _, chat = start_policy(from_folder(settings, toolless), runs)
    for run in {(run.kind, len(run.messages)): run for run in runs}.values():
        encoded = encode(chat, run)
        whole = chat.prompt(run.messages, run.tools)
        assert tuple(encoded.ids) == whole[: len(encoded.ids)]
        turns = [message for message in run.messages if message["role"] == "assistant"]
        ends = [place for place, token in enumerate(encoded.ids) if encoded.mask[place] and token in chat.stop_ids]
        assert len(ends) == len(turns)
        for end, turn in zip(ends, turns, strict=True):
            begin = end - encoded.mask[: end + 1][::-1].index(0) + 1
            message = chat.read(encoded.ids[:begin], encoded.ids[begin : end + 1], run.tools)
            assert read_action(message, 0).message["content"] == turn["content"]
            assert calls(message) == calls(turn)


def calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    found = [call["function"] for call in message.get("tool_calls", ())]
    return [(call["name"], _object(call["arguments"])) for call in found]


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


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
def test_a_malformed_call_never_passes_for_an_answer(chat: ChatFormat, runs: list[ScriptedEpisode], reply: str) -> None:
    prompt = chat.prompt(runs[0].messages[:2], runs[0].tools)
    message = chat.read(prompt, chat.tokenizer.encode(reply, add_special_tokens=False), runs[0].tools)
    turn = read_action(message, 0)
    assert message["parse_error"]
    assert turn.problem or any(call.problem for call in turn.calls)


def test_several_calls_in_a_turn_are_read(chat: ChatFormat, runs: list[ScriptedEpisode]) -> None:
    written = chat.tokenizer.encode('So: <|call|>one{"a": 1}<|call|>two{}<|end|>', add_special_tokens=False)
    message = chat.read(chat.prompt(runs[0].messages[:2], runs[0].tools), written, runs[0].tools)
    assert message["content"].strip() == "So:"
    assert calls(message) == [("one", {"a": 1}), ("two", {})]


# Batches.


def test_batches_follow_the_mixture_and_keep_to_their_size() -> None:
    settings = CloningSettings(steps=400, tokens_per_step=300)
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
    settings = CloningSettings(steps=3, tokens_per_step=10, mixture=Mixture(benign=1, benign_refused=0, attacked=0))
    assert plan_batches([EncodedEpisode("benign", [0] * 50, [1] * 50)], settings) == [[0]] * 3


def test_a_mixture_asks_for_no_kind_that_is_not_there() -> None:
    encoded = [EncodedEpisode(kind, [0], [1]) for kind in Mixture().shares() if kind != "refused"]
    with pytest.raises(ValueError, match="kinds of episodes that do not exist here: refused"):
        plan_batches(encoded, CloningSettings())
    none_refused = Mixture(ignored=0.53, obeyed=0.47)
    assert plan_batches(encoded, CloningSettings(mixture=none_refused))


# The base policy.


def play_one(base: Path) -> Episode:
    agent = LocalAgent(str(base), temperature=1.0, max_new_tokens=24)
    env = gym.make("fate/AgentDojo-v0", suite="banking").unwrapped
    assert isinstance(env, ToolEnv)

    async def main() -> Episode:
        try:
            await agent.check()
            return await rollout(env, agent, env.tasks[0], 0)
        finally:
            await agent.aclose()

    return asyncio.run(main())


def test_the_folder_loads_as_an_agent_and_plays(base: Path) -> None:
    result = play_one(base)
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


def build(folder: Path, settings: CloningSettings = SETTINGS, *, kill_at: int = 0) -> tuple[BaseReport, list[int]]:
    """Builds, and lists the steps that were done."""
    steps: list[int] = []

    def on_progress(step: int, total: int, loss: float) -> None:
        steps.append(step)
        if step == kill_at:
            raise Killed

    return build_base(folder, settings, repair_prompt=repair_prompt, on_progress=on_progress), steps


@pytest.mark.parametrize(("settings", "undisturbed"), [(SETTINGS, "base"), (GIVEN, "given_base")])
def test_a_killed_cloning_goes_on_from_its_checkpoint_to_the_same_weights(
    settings: CloningSettings, undisturbed: str, toolless: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings, base = from_folder(settings, toolless), request.getfixturevalue(undisturbed)
    with pytest.raises(Killed):
        build(tmp_path / "base", settings, kill_at=5)
    report, steps = build(tmp_path / "base", settings)
    assert steps == [5, 6, 7]
    whole = read_base(base)
    assert whole is not None
    assert (report.loss, report.tokens) == (whole.loss, whole.tokens)
    left, right = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "base"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_given_policy_is_cloned_with_adapters_and_keeps_chat_template_and_marks(
    toolless: Path, given_base: Path
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (toolless, given_base))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.0.mlp.up_proj.weight" in changed
    assert "model.embed_tokens.weight" not in changed
    assert play_one(given_base).status == "ok"
    assert LocalAgent(str(given_base)).contaminated_by == ("agentharm",)


def test_a_given_policy_is_cloned_with_all_its_weights(toolless: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    settings = dataclasses.replace(from_folder(GIVEN, toolless), lora=None)
    build_base(
        tmp_path, settings, repair_prompt=repair_prompt, on_progress=lambda step, steps, loss: losses.append(loss)
    )
    assert losses[-1] < losses[0] - 0.1
    before, after = (load_file(folder / "model.safetensors") for folder in (toolless, tmp_path))
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_a_given_policy_that_cannot_be_cloned_is_told_why(toolless: Path, tmp_path: Path) -> None:
    settings = from_folder(GIVEN, toolless)
    with pytest.raises(UsageError, match=r"takes no tools; chat_template=hermes or hermes_compact"):
        build(tmp_path / "base", dataclasses.replace(settings, chat_template=None))
    # A template that begins otherwise with each turn, and one that no response template reads.
    for text, problem in (
        (
            "{{ '<|im_start|>system\n' ~ messages | length }}" + read_chat_template("hermes_compact"),
            "appends each turn",
        ),
        ("{% for t in tools %}{{ t.function.name }}{% endfor %}<|im_start|>assistant\n", "no response template"),
    ):
        (tmp_path / "other.jinja").write_text(text)
        with pytest.raises(UsageError, match=problem):
            build(tmp_path / "base", dataclasses.replace(settings, chat_template=str(tmp_path / "other.jinja")))
    with pytest.raises(UsageError, match="policy nowhere"):
        build(tmp_path / "base", dataclasses.replace(settings, start="nowhere"))


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
        (lambda: CloningSettings(steps=0), "steps must be at least 1, got 0"),
        (lambda: CloningSettings(hidden_size=100), "hidden_size must be a multiple of 8"),
        (lambda: CloningSettings(suites=()), "at least one suite"),
        (lambda: CloningSettings(chat_template="hermes"), "for a policy that is given by `start`"),
    ],
)
def test_senseless_settings_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
