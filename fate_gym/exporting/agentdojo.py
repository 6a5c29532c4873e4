"""AgentDojo's own logs: `PIPELINE/SUITE/USER_TASK/ATTACK/INJECTION_TASK.json`, which its tools load again.

Written is what was graded: the calls that could be read, and the texts as they stand in the conversation. AgentDojo has
no place for a call whose arguments could not be read, nor for the complaint that answers such a message: its graders
never see them. It has one file a pair, so that each repeat is a pipeline of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fate_gym.chat import EMPTY_ANSWER, Json, Message
from fate_gym.episode import Call, Episode
from fate_gym.errors import UsageError
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import Exported
from fate_gym.storage import make_folder, replace_file

_NONE: Final = "none"
_NO_ANSWER: Final = ("unreadable", "not_run")
"""Outcomes of calls to which AgentDojo's logs have no answer."""


def export(run: RunFolder, out: Path) -> Exported:
    """Writes a log for each scored episode below the folder `out`.

    Raises:
        UsageError: The run is of another benchmark.
    """
    config = run.manifest["config"]
    if config["env"] != DEFAULT_ENV:
        raise UsageError(f"{run.path} is a run of {config['env']}: only runs of {DEFAULT_ENV} become AgentDojo's logs")
    pipeline = "-".join([config["agent"], *config["defences"]]).replace("/", "_")
    provenance = run.manifest["provenance"][0]
    written = Exported(out)
    make_folder(out)
    for episode in run.episodes():
        if episode.verdict.utility.error is not None or episode.verdict.security.error is not None:
            written.left_out["episodes whose grader failed: AgentDojo's logs know no open verdict"] += 1
            continue
        log = {
            "pipeline_name": pipeline if episode.repeat == 0 else f"{pipeline}-repeat-{episode.repeat}",
            **_log(episode, provenance["version"]),
            "benchmark_version": provenance["version"],
            "agentdojo_package_version": provenance["agentdojo"],
        }
        folders = [str(log[name]) for name in ("pipeline_name", "suite_name", "user_task_id", "attack_type")]
        path = out.joinpath(*folders, f"{log['injection_task_id'] or _NONE}.json")
        make_folder(path.parent)
        replace_file(path, json.dumps(log, indent=4).encode())
        written.episodes += 1
        if unreadable := sum(call.outcome == "unreadable" for call in episode.calls):
            written.left_out["calls that could not be read"] += unreadable
    return written


def _log(episode: Episode, version: str) -> dict[str, Json]:
    suite, user_task, goal = episode.task_id.split("/")
    attacked = episode.mode == "attacked"
    return {
        "suite_name": suite,
        "user_task_id": user_task,
        "injection_task_id": (_first_goal(suite, version) if goal == "dos" else goal) if attacked else None,
        "attack_type": episode.attack or _NONE,
        "injections": dict(episode.injections),
        "messages": list(_messages(episode)),
        "error": None,
        "utility": episode.verdict.utility.value == 1.0,
        # AgentDojo's `security` says that the attack succeeded, and without an attack it is always true.
        "security": episode.verdict.security.value == 0.0 if attacked else True,
        "duration": episode.seconds["total"],
        # Not AgentDojo's: its logs do not say why they end. Its readers pass over the field.
        "ended": episode.ended,
    }


def _first_goal(suite: str, version: str) -> str:
    """Returns the injection task that AgentDojo names in logs of a denial of service: the suite's first."""
    from fate_gym.benchmarks.agentdojo.upstream import suites

    return str(next(iter(suites(version)[suite].injection_tasks)))


def _messages(episode: Episode) -> Iterator[Json]:
    calls = {call.id: call for call in episode.calls if call.outcome != "unreadable"}
    logged: dict[str, Json] = {}
    asked = False
    for message in episode.messages:
        role, content = message["role"], message.get("content") or ""
        if role == "assistant":
            asked = True
            requests = [
                _request(calls[call["id"]], call) for call in message.get("tool_calls", ()) if call["id"] in calls
            ]
            logged.update({str(request["id"]): request for request in requests})
            text = "" if content == EMPTY_ANSWER else content
            yield {"role": role, "content": _blocks(text), "tool_calls": requests}
        elif role == "tool":
            call = calls.get(message["tool_call_id"])
            if call is not None and call.outcome not in _NO_ANSWER:
                yield _answer(call, content, logged[call.id])
        elif not asked:
            yield {"role": role, "content": _blocks(content)}


def _request(call: Call, message: Message) -> dict[str, Json]:
    arguments = json.loads(message["function"]["arguments"])
    return {"function": call.name, "args": arguments, "id": call.id, "placeholder_args": None}


def _answer(call: Call, content: str, request: Json) -> Json:
    """A tool message; AgentDojo keeps errors apart from outputs."""
    failed = call.outcome != "ok"
    return {
        "role": "tool",
        "content": _blocks("" if failed else content),
        "tool_call_id": call.id,
        "tool_call": request,
        "error": content if failed else None,
    }


def _blocks(text: str) -> Json:
    return [{"type": "text", "content": text}]
