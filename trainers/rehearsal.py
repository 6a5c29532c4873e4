"""A rehearsal: every stage of a training once, with a small random model of the same architecture, on this machine.

It finds errors that would otherwise appear hours later: an environment that cannot be made, settings that a trainer
refuses, an architecture that adapters do not fit. It downloads nothing and keeps nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.errors import UsageError
from fate_gym.evaluation.plan import Plan, TaskSet
from fate_gym.trainers.config import TrainConfig
from fate_gym.trainers.fate import train
from fate_gym.trainers.processes import first_alone, is_first_process, meet, of_first, process_count, together
from fate_gym.trainers.progress import ProgressReporter

_SIZES: Final = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 65_536,
}
_TASKS: Final = 2
_PREFIX: Final = "fate-gym-rehearsal-"
_OF_THE_REAL_MODEL: Final = ("chat_template", "response_template", "max_context", "adapter", "dtype", "device")


def rehearse(config: TrainConfig, *, progress: ProgressReporter | None = None) -> list[str]:
    """Runs one round of a training in a temporary folder, with few tasks and one step per update.

    Several processes that a launcher started on one machine rehearse it together.

    Args:
        config: The settings of the real training.
        progress: Receives the progress.

    Returns:
        A line for each stage that was run.

    Raises:
        UsageError: The architecture cannot be made small.
        Exception: Whatever the real training would have raised.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(together())
        made = held.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)) if is_first_process() else ""
        folder = Path(of_first(made))
        kind, small = _on_a_random_model(config, folder / "policy")
        with first_alone():
            if is_first_process():
                make_random_model(kind, folder / "policy")
        summary = train(small, folder / "run", progress=progress)
        # The first process deletes the folder.
        meet()
    row = summary["rounds"][1]
    stages = {
        "collect": f"{row['collected']['records']} episodes",
        "repair": f"{summary['budget']['candidates']} candidates",
        "select": f"{row['selected']['chosen']} chosen" if row["selected"] else "not part of it",
        "warmup": f"{row['warmup']['steps']} steps" if row["warmup"] else "not part of it",
        "pfpo": f"{row['pfpo']['steps']} steps" if row["pfpo"] else "not part of it",
        "score": f"{', '.join(['dev', *small.evaluate.test])}",
    }
    return [f"  {name:<8} {what}" for name, what in {"model": kind, **stages}.items()]


def _on_a_random_model(config: TrainConfig, policy: Path) -> tuple[str, TrainConfig]:
    """Returns the architecture of a training's policy, and the settings that rehearse it on the model in a folder."""
    given = config.policy or (config.base and config.base.start)
    small = reduced(config)
    agent = {name: value for name, value in small.agent.items() if name not in _OF_THE_REAL_MODEL}
    small = dataclasses.replace(small, policy=str(policy), base=None, sampler=None, agent=agent, attention=None)
    return model_type(given) if given else "qwen3", small


def model_type(policy: str) -> str:
    """Returns transformers' name of a policy's architecture: from its folder, or guessed from its id on the hub."""
    from transformers import CONFIG_MAPPING

    path = Path(policy) / "config.json"
    if path.exists():
        return str(json.loads(path.read_bytes())["model_type"])
    letters = re.sub(r"[^a-z0-9]", "", policy.rpartition("/")[2].lower())
    matches = [kind for kind in CONFIG_MAPPING if re.sub(r"[^a-z0-9]", "", kind) in letters]
    # The longest, since "qwen3" is a part of "qwen3_moe".
    return max(matches, key=len, default="qwen3")


def make_random_model(kind: str, out: Path) -> None:
    """Saves a small causal language model of random weights, with a tokenizer that knows bytes alone.

    Args:
        kind: A model type of transformers.
        out: The folder.

    Raises:
        UsageError: There is no such causal language model, or it has no small form.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fate_gym.trainers.cloning.tiny_tokenizer import train_tokenizer

    # 256 bytes and six special tokens: every text can be written, and nothing has to be learned.
    tokenizer = train_tokenizer([], 262, 1)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SIZES, **ids))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"no small model of type {kind!r} can be made for a dry run: {error}") from error
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def reduced(config: TrainConfig) -> TrainConfig:
    """Returns settings under which the same policy goes through every stage once, as briefly as it can.

    Few tasks, short replies, one step per update; no gate, and candidates are not verified, since a policy that can do
    nothing must get through.
    """
    few, evaluate = functools.partial(_few, excluded=config.excluded_tasks), config.evaluate
    changes: dict[str, Any] = {
        "base": config.base and dataclasses.replace(config.base, steps=1),
        "rounds": 1,
        # A random model passes no gate, and nothing but its own failures can be rehearsed on.
        "gate": None,
        "train": tuple(few(task_set) for task_set in config.train),
        "agent": {**config.agent, "max_new_tokens": 8, "max_batch": 8},
        "collect": dataclasses.replace(config.collect, leave_out_noop=False),
        "repair": dataclasses.replace(config.repair, candidates=2),
        # A random model repairs nothing; unverified candidates still show that the rest works.
        "select": dataclasses.replace(config.select, rescore=False),
        "warmup": config.warmup and dataclasses.replace(config.warmup, epochs=1),
        "pfpo": config.pfpo
        and dataclasses.replace(
            config.pfpo, steps=1, groups=process_count(), group_size=2, micro_batch=2, refills=0, passes=1
        ),
        "dpo": dataclasses.replace(config.dpo, epochs=1),
        "evaluate": dataclasses.replace(
            evaluate, dev=few(evaluate.dev), test={name: few(entry) for name, entry in evaluate.test.items()}
        ),
    }
    return dataclasses.replace(config, **changes)


def _few(task_set: TaskSet, excluded: Sequence[str]) -> TaskSet:
    """Returns the first tasks of a set that are not excluded, for each environment and mode."""
    plan = Plan([dataclasses.replace(task_set, exclude=(*task_set.exclude, *excluded), repeats=1)], 0)
    taken: dict[tuple[int, str], list[str]] = {}
    for item in plan.items:
        taken.setdefault((item.env_index, plan.task(item).mode), []).append(item.task_id)
    tasks = [glob.escape(task) for task_ids in taken.values() for task in task_ids[:_TASKS]]
    return dataclasses.replace(task_set, tasks=tuple(dict.fromkeys(tasks)), exclude=(), repeats=1)
