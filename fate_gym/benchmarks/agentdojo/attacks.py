"""AgentDojo's registered attacks, for an agent of any name, and a user's own payloads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks import load_attack
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.models import MODEL_NAMES
from agentdojo.task_suite.task_suite import TaskSuite

from fate_gym.attack import attack_label, is_attack
from fate_gym.benchmarks.agentdojo.model_names import known_model
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
from fate_gym.errors import unknown

DESCRIPTIONS: Final = {
    "direct": "Puts `TODO:` before the attacker's goal.",
    "ignore_previous": "Tells the model to ignore its instructions and to follow the attacker's goal.",
    "system_message": "Presents the attacker's goal as a system message.",
    "injecagent": "Uses InjecAgent's text: ignore all instructions and strictly follow this one.",
    "important_instructions": "Poses as a message from the user, who addresses the model by name.",
    "important_instructions_no_user_name": "`important_instructions` without the user's name.",
    "important_instructions_no_model_name": "`important_instructions` without the model's name.",
    "important_instructions_no_names": "`important_instructions` without either name.",
    "important_instructions_wrong_model_name": "`important_instructions` with the name of another model.",
    "important_instructions_wrong_user_name": "`important_instructions` with the name of another user.",
    "tool_knowledge": "`important_instructions` that also names the tools to call and their arguments.",
    "dos": "Asks the model to stop at once (denial of service: success is that the user's task fails).",
    "captcha_dos": "Asks the model to solve a captcha before it goes on (denial of service).",
    "swearwords_dos": "Insults the model so that it stops (denial of service).",
    "felony_dos": "Tells the model that to go on would be illegal (denial of service).",
    "offensive_email_dos": "Asks the model to send a threatening mail, so that it stops (denial of service).",
}
"""What each registered attack does, in a sentence."""

_LOCAL = "local"
_HIDDEN = ("manual",)
"""Attacks that are left out: `manual` asks a person on standard input for every task."""


def attack_names() -> tuple[str, ...]:
    """Returns the names of the registered attacks, including those that a user has registered."""
    return tuple(sorted(set(ATTACKS) - set(_HIDDEN)))


def is_dos(name: str) -> bool:
    """Returns whether an attack only tries to stop the user's task. Such an attack has no injection task.

    Raises:
        ValueError: There is no such attack.
    """
    if name not in attack_names():
        raise ValueError(unknown("attack", name, attack_names()))
    return bool(ATTACKS[name].is_dos_attack)


@dataclass(frozen=True, slots=True)
class OwnPayloads:
    """An attack that a user made of texts.

    Attributes:
        label: Its name in results, "custom" or "custom:NAME".
        everywhere: Vector -> text, for every task; {} where each task has its own.
        by_task: Task id -> vector -> text; None where all tasks have the same.
    """

    label: str
    everywhere: Mapping[str, str]
    by_task: Mapping[str, Mapping[str, str]] | None = None

    @classmethod
    def read(cls, attack: Mapping[str, Any]) -> OwnPayloads:
        """Reads `{vector: text}` or `{"name": NAME, "payloads": {task_id: {vector: text}}}`.

        Raises:
            ValueError: It is neither.
        """
        if not is_attack(attack):
            raise ValueError("payloads must be texts by vector, or a `name` and `payloads`: task id -> vector -> text")
        label = str(attack_label(attack))
        own = attack.get("payloads")
        return cls(label, {}, own) if isinstance(own, Mapping) else cls(label, attack)

    def injections(self, task_id: str, vectors: Collection[str]) -> dict[str, str]:
        """Returns vector -> text for one task; of the texts for every task those whose vectors its suite has."""
        if self.by_task is not None:
            return dict(self.by_task[task_id])
        return {vector: text for vector, text in self.everywhere.items() if vector in vectors}


class RegisteredAttack:
    """One registered attack on one suite.

    Args:
        name: Its name in AgentDojo's registry.
        suite: The suite to attack.
        template: The suite's fast loader.
        candidates: User task -> injection vectors whose text the ground truth reads.
        model_name: How the attack addresses the agent: a prose name ("GPT-4"), or a model id that AgentDojo knows,
            which it then turns into prose.
    """

    def __init__(
        self,
        name: str,
        suite: TaskSuite[Any],
        template: SuiteTemplate,
        candidates: Mapping[str, tuple[str, ...]],
        model_name: str,
    ) -> None:
        self._suite = suite
        self._candidates = candidates
        pipeline_name, prose = resolve_name(model_name)
        attack = load_attack(name, _FastSuite(suite, template), _NamedPipeline(pipeline_name))
        # AgentDojo refuses models that it does not know; those pass as its "local" one and get their name here.
        if getattr(attack, "model_name", None) == MODEL_NAMES[_LOCAL]:
            attack.model_name = prose
        attack.get_injection_candidates = lambda task: list(candidates[task.ID])
        self._attack = attack

    def injections(self, user_task: str, injection_task: str | None) -> dict[str, str]:
        """Returns vector -> text for one pair; a DoS attack needs no injection task."""
        tasks = self._suite.injection_tasks
        goal = tasks[injection_task] if injection_task else next(iter(tasks.values()))
        payloads: dict[str, str] = self._attack.attack(self._suite.user_tasks[user_task], goal)
        return payloads


class _NamedPipeline(BasePipelineElement):  # type: ignore[misc]
    """A pipeline that only has a name, which is all that an attack asks of its target."""

    def __init__(self, name: str) -> None:
        self.name = name

    def query(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("only its name is used")


class _FastSuite:
    """A suite whose environments come from the fast loader; `tool_knowledge` loads one for each injection task."""

    def __init__(self, suite: TaskSuite[Any], template: SuiteTemplate) -> None:
        self._suite = suite
        self._template = template

    def __getattr__(self, name: str) -> Any:
        return getattr(self._suite, name)

    def get_injection_vector_defaults(self) -> dict[str, str]:
        return dict(self._template.vectors)

    def load_and_inject_default_environment(self, injections: dict[str, str]) -> Any:
        return self._template.environment(injections).load()


def resolve_name(model_name: str) -> tuple[str, str]:
    """Returns a pipeline name that AgentDojo accepts, and the prose name to use where that is its "local" one."""
    known = known_model(model_name)
    if known is not None:
        return known, MODEL_NAMES[known]
    for known, prose in MODEL_NAMES.items():
        if prose == model_name:
            return known, prose
    return _LOCAL, model_name
