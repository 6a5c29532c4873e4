"""Reads Inspect's logs of AgentHarm and AgentDojo, by Inspect's own reader."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.errors import CallsLeftError, ContextOverflowError, CutError, DataError, LimitError, UsageError
from fate_gym.evaluation.plan import DEFAULT_ENV
from fate_gym.evaluation.recorded import REFUSED, Recorded
from fate_gym.importing.files import files_below
from fate_gym.importing.logs import Header, LeftOut, Log, Reader, Settings
from fate_gym.storage import file_digest

AGENTHARM: Final = "fate/AgentHarm-v0"
AGENTDOJO_VERSION: Final = "v1.2.1"
"""The version at which inspect_evals keeps AgentDojo's tasks."""

STRANGE: Final = "not what the harness writes"

_MOST_EPOCHS: Final = 1000
"""A plan has a place for each epoch up to the last, whether there is a sample of it or not."""

_LARGEST: Final = 2**29
"""Bytes of a sample, unpacked."""

_CONFIGS: Final = (("benign", "harmless_benign"), ("chat", "chat"))
_INTERIM: Final = "text without calls before the end"


class InspectReader(Reader):
    """Inspect's logs.

    A sample of AgentHarm is known by its request, which the data at hand must hold; one of AgentDojo by its id.

    Args:
        paths: `.eval` and `.json` files, and folders that hold some.
        model: The model's name in results; by default as the logs name it.

    Raises:
        UsageError: inspect_ai is not installed, or there is no such path.
    """

    format = "inspect"

    def __init__(self, paths: Sequence[Path], *, model: str | None = None) -> None:
        try:
            import inspect_ai.log  # noqa: F401
        except ModuleNotFoundError as missing:
            raise UsageError("Inspect's logs need its package: pip install 'fate-gym[agentharm]'") from missing
        self._files = dict(files_below(paths, (".eval",)))
        self._model = model

    def survey(self) -> Iterator[Header | LeftOut]:
        """Yields what there is, in the order of the paths."""
        for source, path in self._files.items():
            try:
                yield from self._survey(source, path)
            except DataError:
                raise
            except Exception as error:
                # A stranger's file may make Inspect's reader raise anything.
                yield LeftOut(source, "", f"Inspect cannot read it: {type(error).__name__}")

    def settings(self, headers: Sequence[Header]) -> Settings:
        """Returns the environment of the samples of one model."""
        first = headers[0]
        rounds = max(15, *(int(header.facts["rounds"]) for header in headers))
        args: dict[str, Json] = {"verbatim": True, "max_turns": rounds}
        unknown = []
        systems = {header.facts["system"] for header in headers}
        if len(systems) == 1:
            args["system_prompt"] = systems.pop()
        else:
            unknown.append("the system prompt: the logs have several, and the benchmark's own stands in the episodes")
        has_attacks = first.facts["env"] == DEFAULT_ENV
        if has_attacks:
            args |= {"version": first.variant, "suite": sorted({header.task_id.split("/")[0] for header in headers})}
        else:
            configs = sorted({header.task_id.split("/")[1] for header in headers})
            messages = max(int(header.facts["messages"]) for header in headers)
            args |= {"split": first.variant, "config": configs, "max_messages": messages + 1}
        return Settings(first.facts["env"], args, self._model or first.run, (), tuple(unknown), has_attacks)

    def read(self, header: Header) -> Log:
        """Reads one sample."""
        from inspect_ai.log import read_eval_log_sample

        path, sample_id, epoch, sha256 = header.place  # type: ignore[misc, str-unpack]
        sample = read_eval_log_sample(str(path), id=sample_id, epoch=epoch)
        turns = [message for message in sample.messages if message.role == "assistant"]
        acted = [message for message in turns if message.tool_calls or message is sample.messages[-1]]
        cut = _cut(sample)
        if isinstance(cut, CallsLeftError):
            cut = CallsLeftError("recorded", action=_action(acted.pop()))
        interim = sum(not message.tool_calls and message is not sample.messages[-1] for message in turns)
        scores, judged = _scores(sample, header.task_id)
        return Log(
            actions=tuple(_action(message) for message in acted),
            cut=cut,
            answers=tuple(_answer(message) for message in sample.messages if message.role == "tool"),
            seconds=sample.total_time,
            recorded=Recorded(
                key="",
                source=header.source,
                sha256=str(sha256),
                scores=scores,
                judged=judged,
                version=header.package,
                left_out={_INTERIM: interim} if interim else {},
            ),
        )

    def _survey(self, source: str, path: Path) -> Iterator[Header | LeftOut]:
        from inspect_ai.log import read_eval_log

        _check_size(path)
        spec = read_eval_log(str(path), header_only=True).eval
        for sample in _samples(path):
            where, run = f"{source}:{sample.id}#{sample.epoch}", str(spec.model).rpartition("/")[2] or "unknown"
            try:
                yield self._header(where, run, path, spec, sample)
            except (AttributeError, KeyError, TypeError, ValueError):
                yield LeftOut(where, run, STRANGE)

    def _header(self, where: str, run: str, path: Path, spec: Any, sample: Any) -> Header | LeftOut:
        env, variant, task_id, injections, problem = _identify(spec, sample)
        problem = problem or _problem(sample, task_id)
        if problem:
            return LeftOut(where, run, problem)
        attack = str(spec.task_args.get("attack", "important_instructions")) if injections else None
        systems = [message.text for message in sample.messages if message.role == "system"]
        facts = {
            "env": env,
            "rounds": str(sum(bool(m.tool_calls) for m in sample.messages if m.role == "assistant")),
            "messages": str(len(sample.messages)),
            "system": "\n".join(systems),
        }
        package = ", ".join(f"{name} {version}" for name, version in sorted(spec.packages.items()))
        place: Json = [str(path), sample.id, sample.epoch, _digest(path)]
        return Header(
            place, where, run, variant, task_id, attack, injections, package, spec.created, sample.epoch - 1, facts
        )


def _samples(path: Path) -> Iterator[Any]:
    """Yields the samples one by one. Inspect's own generator refuses logs whose header lists no samples."""
    from inspect_ai.log import read_eval_log_sample, read_eval_log_sample_summaries

    for summary in read_eval_log_sample_summaries(str(path)):
        sample = read_eval_log_sample(str(path), id=summary.id, epoch=summary.epoch)
        if (sample.id, sample.epoch) != (summary.id, summary.epoch):
            raise ValueError(f"{path} holds another sample in the place of {summary.id}")
        yield sample


@functools.cache
def _digest(path: Path) -> str:
    return file_digest(path)


def _check_size(path: Path) -> None:
    """Raises `ValueError` for a file of which a part would fill the memory when it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        if any(part.file_size > _LARGEST for part in archive.infolist()):
            raise ValueError(f"{path} unpacks to more than {_LARGEST} bytes")


def _problem(sample: Any, task_id: str) -> str:
    """Says why a sample cannot be played or has no verdict; "" where it can and has."""
    if sample.error is not None:
        return "an error of the harness or of a server"
    if not any(message.role == "assistant" for message in sample.messages):
        return "no assistant message"
    if sample.messages[-1].role == "user" and sample.limit is None:
        return "unfinished: the last message is the user's"
    if not 1 <= sample.epoch <= _MOST_EPOCHS:
        return f"an epoch that does not lie between 1 and {_MOST_EPOCHS}"
    scores, _ = _scores(sample, task_id)
    if not all(0 <= score <= 1 for score in scores.values()):
        return STRANGE
    return "" if sample.scores else "no verdict"


_Identity = tuple[str, str, str, Mapping[str, str] | None, str]
"""(environment, variant, task id, injections, why it is not known)"""


def _identify(spec: Any, sample: Any) -> _Identity:
    if "task_suite_name" in sample.metadata:
        return _agentdojo(spec, sample)
    found = _requests().get(_prompt(sample))
    if found is None:
        return "", "", "", None, "a request that none of AgentHarm's data at hand holds"
    # The same words may stand in several parts of the data; the task's name tells which of them was run.
    config = next((name for word, name in _CONFIGS if word in spec.task), "harmful")
    known = next((task_id for task_id in found if task_id.split("/")[1] == config), found[0])
    return AGENTHARM, known.split("/")[0], known, None, ""


def _prompt(sample: Any) -> str:
    if isinstance(sample.input, str):
        return sample.input.strip()
    asked = [message.text for message in sample.input if message.role == "user"]
    return asked[-1].strip() if asked else ""


@functools.cache
def _requests() -> Mapping[str, list[str]]:
    """Returns request -> ids of its tasks, of those of AgentHarm's data files that are at hand."""
    from fate_gym.benchmarks.agentharm.benchmark import AgentHarm
    from fate_gym.benchmarks.agentharm.records import FILES

    requests: dict[str, list[str]] = {}
    for config, split in FILES:
        try:
            benchmark = AgentHarm(config=config, split=split)
        except DataError:
            continue
        for task_id in benchmark.tasks:
            request = str(benchmark.open(task_id, 0).opening[-1]["content"]).strip()
            requests.setdefault(request, []).append(task_id)
    if not requests:
        raise DataError("none of AgentHarm's data files is at hand: FATE_GYM_AGENTHARM_DIR names their folder")
    return requests


def _agentdojo(spec: Any, sample: Any) -> _Identity:
    from fate_gym.benchmarks.agentdojo.upstream import suites

    suite, user = sample.metadata["task_suite_name"], f"user_task_{sample.metadata['task_id']}"
    chosen = suites(AGENTDOJO_VERSION).get(suite)
    if chosen is None or user not in chosen.user_tasks:
        return "", "", "", None, f"a task of {suite}, which is not AgentDojo's"
    number = sample.metadata.get("injection_task_id")
    if number is None:
        return DEFAULT_ENV, AGENTDOJO_VERSION, f"{suite}/{user}/none", None, ""
    goal = f"injection_task_{number}"
    if goal not in chosen.injection_tasks:
        return "", "", "", None, "an unknown pair of tasks"
    try:
        injections = _injected(spec.task_args, chosen, chosen.injection_tasks[goal].GOAL)
    except Exception:
        # Whatever attack the log names, inspect_evals may not have it here.
        return "", "", "", None, "an attack that the installed inspect_evals does not have"
    return DEFAULT_ENV, AGENTDOJO_VERSION, f"{suite}/{user}/{goal}", injections, ""


def _injected(task_args: Mapping[str, Any], suite: Any, goal: str) -> dict[str, str]:
    """Returns what inspect_evals injects: one text, at every vector of the suite."""
    from inspect_evals.agentdojo.attacks.attack import get_attack

    kwargs = task_args.get("attack_kwargs") or {}
    made = get_attack(attack_name=task_args.get("attack", "important_instructions"), **kwargs)
    vectors = suite.get_injection_vector_defaults()
    if isinstance(made, str):
        return dict.fromkeys(vectors, made.format(goal=goal))
    return {vector: text.format(goal=goal) for vector, text in made.items() if vector in vectors}


def _cut(sample: Any) -> CutError | None:
    last = sample.messages[-1]
    if last.role == "assistant":
        return CallsLeftError("recorded") if last.tool_calls else None
    full = sample.limit is not None and sample.limit.type == "context"
    return ContextOverflowError("recorded") if full else LimitError("recorded")


def _action(message: Any) -> Json:
    action: dict[str, Json] = {"role": "assistant", "content": message.text}
    if message.tool_calls:
        action["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return action


def _arguments(call: Any) -> Json:
    """A call that Inspect could not parse was not run; text that is no JSON object stays unreadable here as well."""
    arguments: Json = call.arguments if call.parse_error is None else "unreadable"
    return arguments


def _answer(message: Any) -> str:
    return message.error.message if message.error is not None and not message.text else str(message.text)


def _scores(sample: Any, task_id: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """Returns the recorded verdict on our axes, and the names of those scores that a judge decided."""
    scores: dict[str, float] = {}
    judged: list[str] = []
    for name, score in (sample.scores or {}).items():
        values = score.value
        if isinstance(values, dict) and "score" in values:
            # AgentHarm: of a harmful request the score is harm.
            harmful = task_id.split("/")[1] == "harmful"
            scores["security" if harmful else "utility"] = (
                1 - float(values["score"]) if harmful else float(values["score"])
            )
            scores[REFUSED] = float(values.get("refusal", 0))
            judged += ["security" if harmful else "utility", REFUSED]
        elif isinstance(values, dict) and "utility" in values:
            # AgentDojo: `security` is "C" where the attack succeeded.
            scores["utility"] = float(values["utility"] == "C")
            if "security" in values:
                scores["security"] = float(values["security"] != "C")
        elif values in ("Yes", "No") and "refus" in str(score.explanation).lower():
            scores[REFUSED] = float(values == "Yes")
            judged.append(REFUSED)
        elif name in ("security", "utility") and isinstance(values, int | float):
            scores[name] = float(values)
    return scores, tuple(judged)
