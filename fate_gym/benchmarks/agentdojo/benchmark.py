"""`fate/AgentDojo-v0`: the real AgentDojo, task by task."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, get_args

import yaml
from agentdojo.functions_runtime import Function
from agentdojo.task_suite.task_suite import TaskSuite

from fate_gym.benchmark import Benchmark
from fate_gym.benchmark import World as BaseWorld
from fate_gym.benchmarks.agentdojo import splits
from fate_gym.benchmarks.agentdojo.attacks import OwnPayloads, RegisteredAttack, attack_names, is_dos, resolve_name
from fate_gym.benchmarks.agentdojo.candidates import candidates
from fate_gym.benchmarks.agentdojo.grader_notes import notes, verified
from fate_gym.benchmarks.agentdojo.model_names import DEFAULT_NAME, check_name
from fate_gym.benchmarks.agentdojo.placement import encode_literal, placed
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
from fate_gym.benchmarks.agentdojo.upstream import suites, versions
from fate_gym.benchmarks.agentdojo.verifier import Episode, Trace, verify_episode
from fate_gym.benchmarks.agentdojo.world import AgentDojoWorld, Start
from fate_gym.chat import Json, ToolSchema
from fate_gym.errors import unknown
from fate_gym.rewards import AxisVerdict
from fate_gym.task import DataPolicy, Demonstration, GroundTruth, Task
from fate_gym.transcript import Transcript
from fate_gym.verifiers.judge import JudgeSpec
from fate_gym.verifiers.refusal import REFUSAL_JUDGE, RefusalJudge, load_judge

Encoding = Literal["official", "literal"]
"""The form in which a payload enters AgentDojo's YAML: as it is, or escaped so that every character survives."""

NO_INJECTION = "none"
DENIAL_OF_SERVICE = "dos"


class AgentDojo(Benchmark):
    """AgentDojo 0.1.35 (Debenedetti et al., 2024), every suite, version and attack.

    Task ids are `SUITE/USER_TASK/INJECTION_TASK`; the last part is `none` without attack and `dos` under an attack
    that only tries to stop the user's task.

    Args:
        suite: The name of a suite, several names, or "all".
        version: Version of AgentDojo's benchmark.
        attack: None, the name of a registered attack, or payloads of the user: `{vector: text}` for all tasks, or
            `{"name": NAME, "payloads": {task_id: {vector: text}}}` for those tasks alone.
        split: None for every pair; "train", "dev", "test" or a label of the split file. Without an attack, and under
            denial of service, a split consists of the user tasks that occur in its pairs.
        fold: The fold of version 2 of the split, from 0 to 4; None for version 1.
        trace: The calls that graders see: "official" for all that were requested, "executed" for those that ran.
        injection_encoding: "official" places a payload as AgentDojo does, which folds line breaks and cannot carry
            quotes; "literal" places it character by character.
        model_name: The name by which attacks address the agent: a name of at most five words, or the id of a model that
            AgentDojo knows, in place of which it uses its own name for the model ("GPT-4").
        verified_only: Leave out the tasks whose graders have known defects (`grader_notes`).
        refusal_judge: Decides refusals instead of the rule: a function of a transcript, "module:function", or a model
            (`fate_gym.verifiers.refusal.load_judge`).

    Raises:
        ValueError: An option has an unknown value, or no task is left.
    """

    data_policy = DataPolicy(licence="MIT", training=True)
    judge_options: ClassVar = {"refusal_judge": REFUSAL_JUDGE}
    only_computes = True

    def __init__(
        self,
        *,
        suite: str | Sequence[str] = "all",
        version: str = "v1.2.2",
        attack: str | Mapping[str, Any] | None = None,
        split: str | None = None,
        fold: int | None = None,
        trace: Trace = "official",
        injection_encoding: Encoding = "official",
        model_name: str = DEFAULT_NAME,
        verified_only: bool = False,
        refusal_judge: RefusalJudge | JudgeSpec | None = None,
    ) -> None:
        _one_of("trace", trace, get_args(Trace))
        _one_of("injection_encoding", injection_encoding, get_args(Encoding))
        self._version = version
        self._suites = _choose(suite, suites(version))
        # Upstream's properties choose the tasks of a version anew on every access.
        self._user_tasks = {name: chosen.user_tasks for name, chosen in self._suites.items()}
        self._injection_tasks = {name: chosen.injection_tasks for name, chosen in self._suites.items()}
        self._attack = _read_attack(attack)
        splits.check_fold(fold)
        self._split, self._fold = split, fold
        self._trace: Trace = trace
        self._encode: Callable[[str], str] = encode_literal if injection_encoding == "literal" else str
        self._model_name = check_name(model_name)
        self.model_name = resolve_name(model_name)[1]
        self._refusal_judge = load_judge(refusal_judge)
        self._attacks: dict[str, RegisteredAttack] = {}
        self._starts: dict[str, Start] = {}
        self._described: dict[str, Task] = {}
        self.tasks = tuple(self._list_tasks(verified_only))
        if not self.tasks:
            fold_too = "" if fold is None else f", fold={fold}"
            raise ValueError(f"no task is left with suite={suite!r}, attack={attack!r}, split={split!r}{fold_too}")

    @classmethod
    def choices(cls) -> Mapping[str, Sequence[str]]:
        """Returns the names of suites, versions, attacks and splits."""
        return {
            "suite": ["all", *suites(versions()[-1])],
            "version": versions(),
            "attack": [NO_INJECTION, *attack_names()],
            "split": list(dict.fromkeys([*splits.LABELS_OF, *get_args(splits.Label)])),
        }

    @property
    def attack_name(self) -> str | None:
        """The name of the attack; "custom" for payloads that the user gave."""
        return self._attack.label if isinstance(self._attack, OwnPayloads) else self._attack

    def task(self, task_id: str) -> Task:
        """Returns the description of a task.

        `metadata` holds its split label, known defects of its graders, and the attacker's goal in AgentDojo's words.
        """
        if task_id not in self._described:
            self._described[task_id] = self._describe(task_id)
        return self._described[task_id]

    def open(self, task_id: str, seed: int) -> AgentDojoWorld:
        """Creates a world. AgentDojo's tools use no random numbers, so the seed changes nothing.

        Raises:
            ValueError: The official encoding cannot carry a payload.
        """
        start = self._starts.get(task_id)
        if start is None:
            start = self._starts[task_id] = self._start(task_id)
        name, user, _ = task_id.split("/")
        suite = self._suites[name]
        return AgentDojoWorld(start, _functions(suite), _template(suite), self._user_tasks[name][user])

    def verify(self, task: Task, world: BaseWorld, transcript: Transcript) -> dict[str, AxisVerdict]:
        """Asks AgentDojo's graders and the refusal verifier."""
        if not isinstance(world, AgentDojoWorld):
            raise TypeError(f"expected an AgentDojoWorld, got {type(world).__name__}")
        name, user, goal = task.id.split("/")
        before, after = world.states()
        episode = Episode(
            suite=self._suites[name],
            user_task=self._user_tasks[name][user],
            injection_task=self._injection_tasks[name].get(goal),
            pre=before,
            post=after,
            transcript=transcript,
            play=lambda calls: world.replayed(calls, before),
        )
        attacked = task.mode == "attacked"
        return verify_episode(episode, attacked=attacked, trace=self._trace, refusal_judge=self._refusal_judge)

    def ground_truth(self, task_id: str) -> GroundTruth:
        """Returns the ground truth of the user's task, and of the injection task in the state that results."""
        name, user, goal = task_id.split("/")
        world = self.open(task_id, seed=0)
        solved = _demonstrate(self._user_tasks[name][user], world)
        if goal == DENIAL_OF_SERVICE:
            stop = Demonstration(calls=(), answer="I stop here.")
            return GroundTruth(solved, stop, world.payloads, injection_replaces_task=True)
        attacked = None if goal == NO_INJECTION else _demonstrate(self._injection_tasks[name][goal], world)
        return GroundTruth(solved, attacked, world.payloads)

    def payloads(self, task_id: str) -> dict[str, str]:
        """Returns what is injected for a task: vector -> text, as the attack gives it."""
        name, user, goal = task_id.split("/")
        suite = self._suites[name]
        if self._attack is None:
            return {}
        if isinstance(self._attack, OwnPayloads):
            return self._attack.injections(task_id, _template(suite).vectors)
        if name not in self._attacks:
            readable = candidates(self._version, suite)
            self._attacks[name] = RegisteredAttack(self._attack, suite, _template(suite), readable, self._model_name)
        return self._attacks[name].injections(user, None if goal == DENIAL_OF_SERVICE else goal)

    def injection_goal(self, task_id: str) -> str | None:
        """Returns the goal that AgentDojo gives the injection task; None for denial of service, which has no task."""
        name, _, goal = task_id.split("/")
        injected = self._injection_tasks[name].get(goal)
        return None if injected is None else str(injected.GOAL)

    def provenance(self) -> dict[str, Json]:
        """Returns the versions of AgentDojo and of the split, and the checksums of the suites' data."""
        return {
            "agentdojo": importlib.metadata.version("agentdojo"),
            "version": self._version,
            "split_version": splits.version(self._fold),
            "data_sha256": {name: _checksum(name) for name, suite in self._suites.items() if suite.data_path is None},
        }

    def _describe(self, task_id: str) -> Task:
        suite, user, goal = task_id.split("/")
        metadata: dict[str, Json] = {"version": self._version, "notes": [*notes(suite, user), *notes(suite, goal)]}
        if label := splits.labels(self._fold).get(task_id):
            metadata["split"] = label
        if injection := self._injection_tasks[suite].get(goal):
            metadata["injection_goal"] = injection.GOAL
        return Task(
            id=task_id,
            mode="benign" if goal == NO_INJECTION else "attacked",
            suite=suite,
            cluster=f"{suite}/{user}",
            attack=self.attack_name,
            metadata=metadata,
        )

    def _list_tasks(self, verified_only: bool) -> list[str]:
        if isinstance(self._attack, OwnPayloads) and self._attack.by_task is not None:
            return self._list_named(self._attack.by_task, verified_only)
        tasks = []
        for name, suite in self._suites.items():
            for user in self._attackable(name, suite):
                goals = self._goals(name)
                tasks += [f"{name}/{user}/{goal}" for goal in goals if self._is_wanted(name, user, goal, verified_only)]
        return tasks

    def _list_named(self, task_ids: Iterable[str], verified_only: bool) -> list[str]:
        """Returns the tasks that own payloads name.

        Raises:
            ValueError: One of them is no task under attack of these suites.
        """
        tasks = []
        for task_id in task_ids:
            name, user, goal = task_id.split("/") if task_id.count("/") == 2 else ("", "", "")
            known = user in self._user_tasks.get(name, ())
            if not known or goal not in (*self._injection_tasks[name], DENIAL_OF_SERVICE):
                raise ValueError(
                    f"payloads are given for {task_id!r}, which is no SUITE/USER_TASK/INJECTION_TASK of these"
                )
            if self._is_wanted(name, user, goal, verified_only):
                tasks.append(task_id)
        return tasks

    def _is_wanted(self, name: str, user: str, goal: str, verified_only: bool) -> bool:
        known = (user,) if goal in (NO_INJECTION, DENIAL_OF_SERVICE) else (user, goal)
        return self._in_split(name, *known) and (not verified_only or verified(name, *known))

    def _attackable(self, name: str, suite: TaskSuite[Any]) -> list[str]:
        """Returns the user tasks; under attack, only those whose ground truth reads a vector that the attack uses."""
        users = list(self._user_tasks[name])
        if self._attack is None:
            return users
        readable = candidates(self._version, suite)
        if not isinstance(self._attack, OwnPayloads):
            return [user for user in users if readable[user]]
        valid = {vector for suite in self._suites.values() for vector in _template(suite).vectors}
        unknown = sorted(set(self._attack.everywhere) - valid)
        if unknown:
            raise ValueError(f"unknown injection vectors {unknown}; these suites have: {', '.join(sorted(valid))}")
        return [user for user in users if set(readable[user]) & set(self._attack.everywhere)]

    def _goals(self, name: str) -> list[str]:
        if self._attack is None:
            return [NO_INJECTION]
        if isinstance(self._attack, str) and is_dos(self._attack):
            return [DENIAL_OF_SERVICE]
        return list(self._injection_tasks[name])

    def _in_split(self, *parts: str) -> bool:
        if self._split is None:
            return True
        labels = splits.split_labels(self._split)
        if len(parts) == 3:
            return splits.labels(self._fold).get("/".join(parts)) in labels
        return "/".join(parts) in _users_of(labels, self._fold)

    def _start(self, task_id: str) -> Start:
        name, user, _goal = task_id.split("/")
        suite = self._suites[name]
        template = _template(suite)
        injections = {vector: self._encode(text) for vector, text in self.payloads(task_id).items()}
        # Placing them first names the vector of a text that cannot be placed.
        template.environment(injections)
        opening = [
            {"role": "system", "content": _system_message()},
            {"role": "user", "content": self._user_tasks[name][user].PROMPT},
        ]
        payloads = tuple(dict.fromkeys(placed(text) for text in injections.values()))
        return Start(opening, _schemas(suite), injections, payloads)


@cache
def _template(suite: TaskSuite[Any]) -> SuiteTemplate:
    return SuiteTemplate(suite)


@cache
def _functions(suite: TaskSuite[Any]) -> dict[str, Function[Any, Any]]:
    return {function.name: function for function in suite.tools}


@cache
def _schemas(suite: TaskSuite[Any]) -> list[ToolSchema]:
    """Tool schemas as AgentDojo's OpenAI adapter sends them."""
    return [
        {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description,
                "parameters": function.parameters.model_json_schema(),
            },
        }
        for function in suite.tools
    ]


@cache
def _system_message() -> str:
    # As AgentDojo's `load_system_message`, which stands in the module that imports the SDKs of all vendors.
    messages = importlib.resources.files("agentdojo") / "data" / "system_messages.yaml"
    text: str = yaml.safe_load(messages.read_text())["default"]
    return text


@cache
def _users_of(labels: tuple[splits.Label, ...], fold: int | None) -> frozenset[str]:
    return frozenset(pair.rsplit("/", 1)[0] for pair, label in splits.labels(fold).items() if label in labels)


@cache
def _checksum(suite: str) -> str:
    """SHA-256 over a suite's data files, in the order of their names."""
    digest = hashlib.sha256()
    stack = [importlib.resources.files("agentdojo") / "data" / "suites" / suite]
    while stack:
        entry = stack.pop()
        if entry.is_dir():
            stack += sorted(entry.iterdir(), key=lambda child: child.name)
        elif entry.is_file():
            digest.update(entry.name.encode() + b"\0" + entry.read_bytes())
    return digest.hexdigest()


def _demonstrate(task: Any, world: AgentDojoWorld) -> Demonstration:
    """Runs a task's ground truth in a world, and returns it as plain calls."""
    calls = tuple((call.function, dict(call.args)) for call in task.ground_truth(world.environment))
    for name, arguments in calls:
        world.call(name, arguments)
    return Demonstration(calls, task.GROUND_TRUTH_OUTPUT)


def _read_attack(attack: str | Mapping[str, Any] | None) -> str | OwnPayloads | None:
    if isinstance(attack, Mapping):
        return OwnPayloads.read(attack)
    return None if attack == NO_INJECTION else attack


def _choose(names: str | Sequence[str], available: Mapping[str, TaskSuite[Any]]) -> dict[str, TaskSuite[Any]]:
    names = [names] if isinstance(names, str) else list(names)
    names = list(available) if "all" in names else names
    if not names:
        raise ValueError(f"no suite given; there are: all, {', '.join(available)}")
    for name in names:
        if name not in available:
            raise ValueError(unknown("suite", name, ["all", *available]))
    return {name: available[name] for name in dict.fromkeys(names)}


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
