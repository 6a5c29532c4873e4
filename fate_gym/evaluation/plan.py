"""Which episodes an evaluation has, each with its key and seed."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from fate_gym.chat import Json
from fate_gym.env import ToolEnv
from fate_gym.evaluation.config import NOT_IN_DIGEST, EvalConfig
from fate_gym.evaluation.store import SCHEMA, config_digest


@dataclass(frozen=True, slots=True)
class Item:
    """One episode to run.

    Attributes:
        key: Its identity in the run folder: `ATTACK/TASK_ID#REPEAT`.
        variant: Index of the environment (one for each attack).
        task_id: The task.
        repeat: From 0.
        seed: The episode's seed.
    """

    key: str
    variant: int
    task_id: str
    repeat: int
    seed: int


class Plan:
    """An evaluation made concrete: its environments and episodes.

    Args:
        config: The settings.

    Raises:
        ValueError, TypeError, gymnasium.error.Error: The environment cannot be made with these settings.
    """

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        attacks = [{}] if config.attack is None else [{"attack": attack} for attack in config.attack]
        self._kwargs: list[dict[str, Any]] = [{**config.env_args, **attack} for attack in attacks]
        self._first = [self._make(kwargs) for kwargs in self._kwargs]
        self.items = [item for variant in range(len(attacks)) for item in self._items(variant)]
        if not self.items:
            raise ValueError(f"no task of {config.env} matches {', '.join(config.tasks or ())}")

    def make_env(self, variant: int) -> ToolEnv:
        """Makes one more environment of a variant, which shares the benchmark's caches with the others."""
        first = self._first[variant]
        return ToolEnv(
            first.benchmark,
            max_turns=first.max_turns,
            max_messages=first.max_messages,
            system_prompt=first.system_prompt,
        )

    def has_tools(self) -> bool:
        """Whether any of the environments gives its agent tools."""
        firsts = {item.variant: item.task_id for item in reversed(self.items)}
        for variant, task_id in firsts.items():
            # An environment that cannot even begin ends its own episodes as errors, not the whole run.
            with contextlib.suppress(Exception):
                if "tools" in self._first[variant].reset(seed=0, options={"task_id": task_id})[0]:
                    return True
        return False

    def manifest(self) -> dict[str, Json]:
        """What a run folder records of its evaluation: settings, versions and checksums; no secrets."""
        config = self.config.to_json()
        provenance = [env.benchmark.provenance() for env in self._first]
        located = {name: value for name, value in config["env_args"].items() if name != "data_dir"}
        versions = {name: importlib.metadata.version(name) for name in ("fate-gym", "gymnasium", "numpy", "pydantic")}
        return {
            "schema": SCHEMA,
            "config": config,
            # Scores from other data, or by other graders, are another run's; where the data lies changes nothing.
            "digest": config_digest({**config, "env_args": located, "provenance": provenance}, NOT_IN_DIGEST),
            "versions": {**versions, "python": platform.python_version()},
            "provenance": provenance,
            "data_policy": self._first[0].benchmark.data_policy.note or self._first[0].benchmark.data_policy.licence,
        }

    def _make(self, kwargs: Mapping[str, Any]) -> ToolEnv:
        env = gym.make(self.config.env, **kwargs).unwrapped
        if not isinstance(env, ToolEnv):
            raise ValueError(f"{self.config.env} is no fate-gym environment; `fate-gym envs` lists them")
        return env

    def _items(self, variant: int) -> list[Item]:
        env, config = self._first[variant], self.config
        wanted = [task for task in env.tasks if config.tasks is None or _matches(task, config.tasks)]
        chosen = set(sorted(wanted, key=lambda task: _hash(config.seed, task))[: config.limit])
        items = []
        for task_id in env.tasks:
            if task_id not in chosen:
                continue
            attack = env.task(task_id).attack or "none"
            for repeat in range(config.repeats):
                seed = _hash(config.seed, attack, task_id, repeat) % 2**31
                items.append(Item(f"{attack}/{task_id}#{repeat}", variant, task_id, repeat, seed))
        return items


def _matches(task_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(task_id, pattern) for pattern in patterns)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
