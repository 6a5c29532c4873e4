"""Inspect's log: one `.eval` file, which `inspect view` shows and whose dataframe functions open it.

Each axis of the verdict is a score. Inspect has no mask: an axis that does not apply to an episode, or whose grader
failed, has no score there, and the reason stands in the sample's metadata. The log is written in one piece, so that the
run must fit into memory. It has one event a sample, the agent's last turn: the conversation before it is the input.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fate_gym.benchmark import disclosure
from fate_gym.chat import Json, Message
from fate_gym.episode import Call, Episode
from fate_gym.errors import ContextOverflowError, UsageError
from fate_gym.evaluation.store import RunFolder
from fate_gym.exporting import Exported
from fate_gym.rewards import AXES

_LIMITS: Final = {"max_messages": "message", "max_turns": "custom", ContextOverflowError.ended: "context"}
"""How an episode ended -> Inspect's kind of limit."""


def export(run: RunFolder, out: Path) -> Exported:
    """Writes the `.eval` file `out`.

    Raises:
        UsageError: inspect_ai is not installed, or `out` does not end in ".eval".
    """
    try:
        from inspect_ai.log import write_eval_log
    except ModuleNotFoundError as missing:
        raise UsageError("Inspect's logs need its package: pip install 'fate-gym[agentharm]'") from missing
    if out.suffix != ".eval":
        raise UsageError(f"{out} must end in .eval, by which Inspect knows its logs")
    manifest = run.manifest
    samples = [_sample(episode, _model(manifest)) for episode in run.episodes()]
    write_eval_log(_log(run, samples), str(out))
    written = Exported(out, episodes=len(samples))
    declared = disclosure(manifest["config"]["env"])
    if declared is not None and declared.confidential:
        written.notes.append("the benchmark's authors ask not to publish its texts, which stand in this file")
    return written


def _log(run: RunFolder, samples: list[Any]) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec

    config = run.manifest["config"]
    made = datetime.datetime.fromtimestamp((run.path / "manifest.json").stat().st_mtime, datetime.UTC)
    spec = EvalSpec(
        created=made.isoformat(timespec="seconds"),
        task=config["env"],
        task_args={"attack": config["attack"], **config["env_args"]},
        dataset=EvalDataset(name=config["env"], samples=len(samples), sample_ids=[sample.id for sample in samples]),
        model=_model(run.manifest),
        solver="+".join(config["defences"]) or None,
        config=EvalConfig(epochs=config["repeats"]),
        packages={name: version for name, version in run.manifest["versions"].items() if name != "python"},
        metadata={"provenance": run.manifest["provenance"], "digest": run.manifest["digest"]},
    )
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=list(_means(samples)))
    return EvalLog(status="success", eval=spec, results=results, samples=samples)


def _means(samples: list[Any]) -> Iterable[Any]:
    from inspect_ai.log import EvalMetric, EvalScore

    for axis in AXES:
        values = [float(sample.scores[axis].value) for sample in samples if axis in sample.scores]
        metrics = {"mean": EvalMetric(name="mean", value=statistics.fmean(values))} if values else {}
        unscored = len(samples) - len(values)
        yield EvalScore(name=axis, scorer=axis, scored_samples=len(values), unscored_samples=unscored, metrics=metrics)


def _model(manifest: Mapping[str, Any]) -> str:
    return str(manifest["config"]["agent"])


def _sample(episode: Episode, model: str) -> Any:
    from inspect_ai.log import EvalSample, EvalSampleLimit
    from inspect_ai.scorer import Score

    calls = {call.id: call for call in episode.calls}
    messages = [_message(message, calls, model) for message in episode.messages]
    for number, message in enumerate(messages):
        # Inspect's dataframe of messages needs an id for each.
        message.id = f"{episode.key}:{number}"
    asked = next((i for i, message in enumerate(episode.messages) if message["role"] == "assistant"), len(messages))
    axes = episode.verdict.axes
    limit = _LIMITS.get(episode.ended or "", "custom")
    metadata: dict[str, Json] = {
        **{name: getattr(episode, name) for name in ("key", "mode", "suite", "cluster", "attack", "seed", "ended")},
        "injections": dict(episode.injections),
        "injection_reached": episode.injection_reached,
        "not_scored": {name: axis.error or axis.rule for name, axis in axes.items() if not axis.active},
        "task": dict(episode.metadata),
    }
    return EvalSample(
        id=episode.key.rpartition("#")[0],
        epoch=episode.repeat + 1,
        input=messages[:asked],
        target="",
        messages=messages,
        output=(output := _output(episode, messages, model)),
        events=_events(messages, output, model),
        scores={
            name: Score(
                value=axis.value,
                explanation="\n".join(axis.evidence) or None,
                metadata={"rule": axis.rule, "measures": dict(axis.measures)},
            )
            for name, axis in axes.items()
            if axis.active
        },
        metadata=metadata,
        model_usage={} if (usage := _usage(episode)) is None else {model: usage},
        total_time=episode.seconds["total"],
        limit=EvalSampleLimit(type=limit, limit=-1, reason=episode.ended) if episode.truncated else None,
    )


def _message(message: Message, calls: Mapping[str, Call], model: str) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser

    content = message.get("content") or ""
    match message["role"]:
        case "assistant":
            requests = [_request(call, calls) for call in message.get("tool_calls", ())]
            return ChatMessageAssistant(content=content, tool_calls=requests or None, model=model, source="generate")
        case "tool":
            call = calls.get(message["tool_call_id"])
            return ChatMessageTool(
                content=content,
                tool_call_id=message["tool_call_id"],
                function=None if call is None else call.name,
                error=_error(call, content),
            )
        case "system":
            return ChatMessageSystem(content=content)
    return ChatMessageUser(content=content)


def _request(requested: Message, calls: Mapping[str, Call]) -> Any:
    from inspect_ai.tool import ToolCall

    call = calls.get(requested["id"])
    unreadable = call is not None and call.outcome == "unreadable"
    return ToolCall(
        id=requested["id"],
        function=requested["function"]["name"] if call is None else call.name,
        arguments=json.loads(requested["function"]["arguments"]),
        parse_error="its arguments could not be read" if unreadable else None,
    )


def _error(call: Call | None, content: str) -> Any:
    from inspect_ai.tool import ToolCallError

    if call is None or call.outcome == "ok":
        return None
    kind = {"unreadable": "parsing", "bad_arguments": "parsing", "not_run": "limit"}.get(call.outcome, "unknown")
    return ToolCallError(kind, content)


def _output(episode: Episode, messages: list[Any], model: str) -> Any:
    from inspect_ai.model import ChatCompletionChoice, ModelOutput

    said = [message for message in messages if message.role == "assistant"]
    if not said:
        return ModelOutput(model=model)
    stop = "content_filter" if episode.content_filtered else "tool_calls" if said[-1].tool_calls else "stop"
    choice = ChatCompletionChoice(message=said[-1], stop_reason=stop)
    return ModelOutput(model=model, choices=[choice], usage=_usage(episode))


def _events(messages: list[Any], output: Any, model: str) -> list[Any]:
    """Returns the agent's last turn as an event: Inspect's dataframe of messages is made of the events' inputs."""
    from inspect_ai.event import ModelEvent
    from inspect_ai.model import GenerateConfig

    if output.empty:
        return []
    before = messages[: messages.index(output.message)]
    return [ModelEvent(model=model, input=before, tools=[], tool_choice="auto", config=GenerateConfig(), output=output)]


def _usage(episode: Episode) -> Any:
    """Returns the tokens; None where they are unknown."""
    from inspect_ai.model import ModelUsage

    prompt, completion = (episode.usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is None or completion is None:
        return None
    tokens = {"input_tokens": int(prompt), "output_tokens": int(completion)}
    return ModelUsage(**tokens, total_tokens=sum(tokens.values()), total_cost=episode.usage.get("cost_usd"))
