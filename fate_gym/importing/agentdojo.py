"""Reads AgentDojo's logs: its own files, one an episode, and lists of them as lines of JSON, as others pass them on."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.errors import (
    CUTS,
    AbortedError,
    CallsLeftError,
    ContextOverflowError,
    CutError,
)
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.evaluation.recorded import ABORT_TEXT, Recorded
from fate_gym.importing.agentdojo_format import Raw, ends_with_tool, raw_log, raw_logs
from fate_gym.importing.files import files_below, run_names
from fate_gym.importing.logs import Header, LeftOut, Log, Reader, Settings

MAX_ROUNDS: Final = 15
"""Tool rounds of AgentDojo's loop."""

NEWEST: Final = "v1.2.2"
DEFENCES: Final = ("tool_filter", "transformers_pi_detector", "spotlighting_with_delimiting", "repeat_user_prompt")
"""Defences that AgentDojo itself writes into the name of a pipeline, after the model's."""

_ABORT: Final = "aborting execution because a prompt injection was detected in message: "


class AgentDojoReader(Reader):
    """AgentDojo's logs.

    A log that ends after a tool's answer was cut off: by a full context, where AgentDojo writes a verdict without
    grading, or by a defence that stopped the agent, where it grades. No log says which. A run is taken for one with
    such a defence if any of its logs that end so has a verdict which AgentDojo does not write without grading.

    Args:
        paths: Files and folders.
        model: The model's name in results. What the paths tell apart is then its defence.
        version: The benchmark's version, where the logs do not name it.
        model_name: How attacks address the model; by default as AgentDojo makes it from the pipeline's name.

    Raises:
        UsageError: There is no such path.
    """

    format = "agentdojo"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        model: str | None = None,
        version: str | None = None,
        model_name: str | None = None,
    ) -> None:
        self._files = dict(files_below(paths, (".json", ".jsonl")))
        self._runs = run_names(self._files)
        self._model = model
        self._version = version
        self._model_name = model_name
        self._aborting: set[tuple[str, str]] = set()

    def survey(self) -> Iterator[Header | LeftOut]:
        """Yields what there is, in the order of the paths."""
        for source, path in self._files.items():
            for raw in raw_logs(path):
                where = source if raw.line is None else f"{source}:{raw.line}"
                run = self._runs[source] if raw.line is None else raw.pipeline or path.stem
                problem = raw.problem
                entry = LeftOut(where, run, problem) if problem else self._header(path, where, run, raw)
                yield entry

    def settings(self, headers: Sequence[Header]) -> Settings:
        """Returns version, limit and system prompt that the logs of a run share."""
        first = headers[0]
        unknown = []
        if any(header.facts["version"] == "" for header in headers):
            unknown.append(f"the benchmark's version: taken as {first.variant}")
        if any(header.facts["rebuilt"] for header in headers):
            unknown.append("what was injected: rebuilt from the attack's name")
        args: dict[str, Json] = {"version": first.variant, "verbatim": True}
        if name := self._address(first.facts["pipeline"]):
            args["model_name"] = name
        present = {header.task_id.split("/")[0] for header in headers}
        args["suite"] = [suite for suite in _suites(first.variant) if suite in present]
        args["max_turns"] = max(MAX_ROUNDS, *(int(header.facts["rounds"]) for header in headers))
        systems = {header.facts["system"] for header in headers}
        if len(systems) > 1:
            unknown.append("the system prompt: the logs have several, and the benchmark's own stands in the episodes")
        elif systems != {_system_message()}:
            args["system_prompt"] = systems.pop()
        if any(header.facts["ending"] == "graded after a tool" for header in headers):
            self._aborting.add((first.run, first.variant))
        agent, defences = self._agent(first.run)
        return Settings(DEFAULT_ENV, args, agent, defences, tuple(unknown))

    def read(self, header: Header) -> Log:
        """Reads one log."""
        raw = raw_log(header.place)
        cut = self._cut(header, raw)
        actions = raw.actions[:-1] if isinstance(cut, CallsLeftError) else raw.actions
        return Log(
            actions=actions,
            cut=cut,
            answers=raw.answers,
            seconds=raw.seconds,
            recorded=Recorded(
                key="",
                source=header.source,
                sha256=raw.sha256,
                scores=raw.scores,
                asked_again=raw.asked_again,
                version=header.package,
                same_version=header.package == _installed(),
                left_out=raw.left_out,
            ),
            other_endings={ABORT_TEXT: _abort_text(raw)} if isinstance(cut, AbortedError) else {},
        )

    def _cut(self, header: Header, raw: Raw) -> CutError | None:
        if raw.ended in CUTS:
            kind = CUTS[raw.ended]
        elif ends_with_tool(raw):
            kind = AbortedError if (header.run, header.variant) in self._aborting else ContextOverflowError
        else:
            kind = CallsLeftError
            if not raw.calls_left or raw.rounds > MAX_ROUNDS:
                return None
        return kind("recorded", action=raw.actions[-1] if kind is CallsLeftError else None)

    def _header(self, path: Path, source: str, run: str, raw: Raw) -> Header | LeftOut:
        version = raw.text("benchmark_version") or self._version or NEWEST
        attack = raw.attack
        task_id, problem = _task(raw, version, attack)
        if problem:
            return LeftOut(source, run, problem)
        injections: Mapping[str, str] | None = None
        if attack is not None and raw.injections:
            made = _registered(version, attack, self._address(raw.pipeline))
            if made is None or task_id not in made.tasks or dict(made.payloads(task_id)) != raw.injections:
                injections = raw.injections
        graded = ends_with_tool(raw) and raw.is_graded
        facts = {
            "version": raw.text("benchmark_version"),
            "rebuilt": "yes" if attack is not None and not raw.injections else "",
            "rounds": str(raw.rounds - raw.calls_left),
            "pipeline": raw.pipeline,
            "system": sys.intern(raw.system),
            "ending": "graded after a tool" if graded else "",
        }
        return Header(
            place=[str(path), raw.offset],
            source=source,
            run=run,
            variant=version,
            task_id=task_id,
            attack=attack,
            injections=injections,
            package=raw.text("agentdojo_package_version") or None,
            when=raw.text("evaluation_timestamp") or None,
            facts=facts,
        )

    def _address(self, pipeline: str) -> str | None:
        """Returns how attacks address the model; None for AgentDojo's name for a model that it does not know."""
        from fate_gym.benchmarks.agentdojo.model_names import prose_name

        return self._model_name or prose_name(pipeline) or prose_name(pipeline.replace("_", "/"))

    def _agent(self, run: str) -> tuple[str, tuple[str, ...]]:
        if self._model is not None:
            return self._model, () if len(set(self._runs.values())) == 1 or run == "none" else (run,)
        for defence in DEFENCES:
            if run.endswith(f"-{defence}"):
                return run.removesuffix(f"-{defence}"), (defence,)
        return run, ()


def _abort_text(raw: Raw) -> Json:
    """The message that AgentDojo graded where a defence stopped the agent: it quotes what the tools answered."""
    return {"role": "assistant", "content": _ABORT + "\n".join(raw.last_answers)}


@functools.cache
def _installed() -> str:
    return importlib.metadata.version("agentdojo")


@functools.cache
def _system_message() -> str:
    from agentdojo.agent_pipeline.agent_pipeline import load_system_message

    text: str = load_system_message(None)
    return text


@functools.cache
def _suites(version: str) -> tuple[str, ...]:
    from fate_gym.benchmarks.agentdojo.upstream import suites

    return tuple(suites(version))


@functools.cache
def _registered(version: str, attack: str | None, model_name: str | None) -> Any:
    """Returns the benchmark under a registered attack; None where there is no such attack."""
    from fate_gym.benchmarks.agentdojo.attacks import attack_names
    from fate_gym.benchmarks.agentdojo.benchmark import AgentDojo

    if attack is not None and attack not in attack_names():
        return None
    named: dict[str, Any] = {} if model_name is None else {"model_name": model_name}
    return AgentDojo(version=version, attack=attack, **named)


def _task(raw: Raw, version: str, attack: str | None) -> tuple[str, str]:
    """Returns the task's id, and why the log cannot be played, "" if it can."""
    from fate_gym.benchmarks.agentdojo.attacks import attack_names, is_dos
    from fate_gym.benchmarks.agentdojo.upstream import suites, versions

    suite, user, goal = raw.text("suite_name"), raw.text("user_task_id"), raw.text("injection_task_id")
    if user.startswith("injection_task"):
        return "", "an injection task that was run as a user task"
    if version not in versions():
        return "", f"AgentDojo has no version {version}"
    chosen = suites(version).get(suite)
    if chosen is None:
        return "", f"the suite {suite}, which is not AgentDojo's"
    if attack is None:
        return (f"{suite}/{user}/none", "") if user in chosen.user_tasks else ("", "an unknown user task")
    known = attack in attack_names()
    if not known and not raw.injections:
        return "", f"the attack {attack} is not AgentDojo's, and the log does not hold what was injected"
    goal = "dos" if known and is_dos(attack) else goal
    if user not in chosen.user_tasks or goal not in (*chosen.injection_tasks, "dos"):
        return "", "an unknown pair of tasks"
    task_id = f"{suite}/{user}/{goal}"
    if not raw.injections and task_id not in _registered(version, attack, None).tasks:
        return "", "a pair that the attack does not reach, and the log does not hold what was injected"
    return task_id, ""
