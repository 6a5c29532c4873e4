"""Conversations for supervised fine-tuning, as TRL's `SFTTrainer` takes them: one JSON object a line.

| field | holds |
|---|---|
| `messages` | the conversation; the arguments of calls are objects, since chat templates write them out |
| `tools` | the schemas of the tools, as one JSON string: a table of mixed schemas would fill them up with nulls |
| `mask` | for each message, 1 where the policy wrote it: what is to be learned, else 0 |
| `axes` | axis -> value of the verdict; null where it is not active |
| `key`, `task_id`, `suite`, `mode`, `attack`, `agent`, `env`, `metadata` | what the episode was |
| `contaminated_by` | data of which somebody asks that no model learn from them |

`SFTConfig(assistant_only_loss=True)` learns what `mask` marks. Conversations in which a turn of the policy is not as it
wrote it (it could not be read, or was empty) are left out, because the mask would mark words that are not its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fate_gym.chat import EMPTY_ANSWER, Json, Message
from fate_gym.episode import Episode
from fate_gym.errors import FateGymError, UsageError
from fate_gym.evaluation.plan import Plan
from fate_gym.evaluation.settings import read_settings
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import Exported
from fate_gym.rewards import AXES
from fate_gym.storage import encode_line, replacing

_ALL: Final = "all"


def export(
    run: RunFolder,
    out: Path,
    *,
    only: Mapping[str, float] | None = None,
    despite_policy: bool = False,
    trust: str | None = None,
) -> Exported:
    """Writes a line for each scored episode into the file `out`.

    Args:
        run: The run.
        out: The file.
        only: Axis -> least value, or "all" for every axis; an axis that is not active is passed over.
        despite_policy: Whether to write conversations that their authors ask not to train on; each is marked then.
        trust: Module that registers a third party's environment; imported. The run may be a stranger's, so that its
            own word is not enough to import anything, to make a judge or to open a folder.

    Raises:
        UsageError: The benchmark's authors ask not to train on it, `only` names no axis, or the environment is not
            registered here, or cannot be made as the run says.
        DataError: The benchmark's data, from which the tools are read, are not at hand.
    """
    least = _least(only or {})
    config = run.manifest["config"]
    plan = _plan(run.manifest, trust)
    contaminated = list(run.manifest.get("contaminated_by", ()))
    policy = plan.benchmarks[0].data_policy
    if not policy.training:
        if not despite_policy:
            raise UsageError(f"not to be trained on: {policy.note} (--despite-policy writes it all the same, marked)")
        contaminated.append(policy.contamination or config["env"])
    tools = _Tools(plan)
    written = Exported(out)
    with replacing(out) as file:
        for episode in run.episodes():
            if reason := _unfit(episode, least) or tools.unknown(episode):
                written.left_out[reason] += 1
                continue
            marks = sorted({*contaminated, *episode.metadata.get("contaminated_by", ())})  # type: ignore[misc]
            origin = {"agent": config["agent"], "env": config["env"], "contaminated_by": marks}
            file.write(encode_line({**_row(episode), "tools": json.dumps(tools.of(episode)), **origin}))
            written.episodes += 1
    return written


def _plan(manifest: Mapping[str, Any], trust: str | None) -> Plan:
    try:
        # Episodes of an earlier, larger limit may be there.
        return dataclasses.replace(read_settings(manifest, trust).config, limit=None, tasks=None).plan()
    except FateGymError:
        raise
    except Exception as error:
        # A stranger's settings may make a benchmark raise anything.
        raise UsageError(f"no environment can be made from the settings of this run: {error}") from error


class _Tools:
    """The tools of each task, which run folders do not hold."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._envs = [plan.make_env(index) for index in range(len(plan.benchmarks))]

    def unknown(self, episode: Episode) -> str:
        return "" if self._plan.find(episode.key) else "episodes of tasks that the environment does not have"

    def of(self, episode: Episode) -> list[Json]:
        item = self._plan.find(episode.key)
        if item is None:
            raise KeyError(episode.key)
        env = self._envs[item.env_index]
        observation, _ = env.reset(seed=episode.seed, options={"task_id": episode.task_id})
        tools: list[Json] = observation.get("tools", [])
        return tools


def _least(only: Mapping[str, float]) -> dict[str, float]:
    for name in only:
        if name not in (*AXES, _ALL):
            raise UsageError(f"{name} is no axis; there are: {', '.join((*AXES, _ALL))}")
    return {name: only.get(name, only.get(_ALL, 0.0)) for name in AXES}


def _unfit(episode: Episode, least: Mapping[str, float]) -> str:
    """Says why an episode is not written, "" if it is."""
    axes = episode.verdict.axes
    if any(axis.error is not None for axis in axes.values()):
        return "episodes of which a grader failed"
    if any(axes[name].active and axes[name].value < value for name, value in least.items()):
        return "episodes below --only"
    roles = [message["role"] for message in episode.messages]
    complained = "user" in roles[roles.index("assistant") :] if "assistant" in roles else True
    unread = any(call.outcome == "unreadable" for call in episode.calls)
    empty = any(message["role"] == "assistant" and message["content"] == EMPTY_ANSWER for message in episode.messages)
    return "episodes with a turn that could not be read" if complained or unread or empty else ""


def _row(episode: Episode) -> dict[str, Json]:
    messages = list(_messages(episode.messages))
    axes = episode.verdict.axes
    return {
        "messages": messages,
        "mask": [int(message["role"] == "assistant") for message in messages],
        "axes": {name: axis.value if axis.active else None for name, axis in axes.items()},
        "key": episode.key,
        "task_id": episode.task_id,
        "suite": episode.suite,
        "mode": episode.mode,
        "attack": episode.attack,
        "metadata": dict(episode.metadata),
    }


def _messages(messages: list[Message]) -> Iterator[Message]:
    names: dict[str, str] = {}
    for message in messages:
        if message["role"] == "tool":
            yield {**message, "name": names[message["tool_call_id"]]}
        elif calls := message.get("tool_calls"):
            names.update({call["id"]: call["function"]["name"] for call in calls})
            yield {**message, "tool_calls": [_with_object(call) for call in calls]}
        else:
            yield message


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "type": "function", "function": {**function, "arguments": json.loads(function["arguments"])}}
