"""The description of a task: its identity and labels, the data policy of its benchmark, and its ground truth."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fate_gym.chat import Json

Mode = Literal["benign", "attacked", "harmful", "diagnosis"]
"""The kinds of tasks in the paper (FATE, Figure 1). The mode decides which axes of the reward are active."""

Purpose = Literal["evaluation", "training"]


@dataclass(frozen=True, slots=True)
class DataPolicy:
    """What a benchmark's licence and authors allow.

    Attributes:
        licence: Short name of the licence, such as "MIT".
        training: Whether the authors allow training on the benchmark.
        note: One sentence that users are told, "" if there is nothing to say.
        contamination: The data that a model has seen if it was trained on the benchmark against the authors' wish, such
            as "AgentHarm/validation". It is recorded in everything that is made from such a model. "" if training does
            no harm.
    """

    licence: str
    training: bool
    note: str = ""
    contamination: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A run that does what was asked: the calls in order, and the final text."""

    calls: tuple[tuple[str, dict[str, Json]], ...]
    answer: str


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The solution of a task. Only agents that declare themselves privileged see it.

    Attributes:
        user: The run that does what the user asked for.
        injection: The run that does what the attacker asked for, starting from the state that the calls of `user`
            leave. None without an injection.
        payloads: The injected texts as they appear in the output of a tool.
        injection_replaces_task: Whether an agent that obeys the injection drops the user's task (denial of service).
    """

    user: Demonstration
    injection: Demonstration | None = None
    payloads: tuple[str, ...] = ()
    injection_replaces_task: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a benchmark.

    Attributes:
        id: Identifies the task in its benchmark, such as "banking/user_task_3/injection_task_2".
        mode: The kind of the task; it decides which axes are active.
        suite: The part of the benchmark by which results are broken down.
        cluster: Tasks with the same cluster are variations of one another (one user task under many injections);
            intervals resample clusters, not tasks.
        attack: Name of the attack, None without an attack.
        metadata: Further facts about the task, such as known defects of its grader.
        ground_truth: None, except in the copy that a privileged agent is given.
    """

    id: str
    mode: Mode
    suite: str
    cluster: str
    attack: str | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)
    ground_truth: GroundTruth | None = None


@functools.cache
def log_terms(policy: DataPolicy) -> None:
    """Logs what the licence and the authors of a benchmark ask for, once in each process."""
    if policy.note:
        import logging  # Not at the top: that would make `import fate_gym` a fifth slower.

        logging.getLogger("fate_gym").warning("%s Licence: %s.", policy.note, policy.licence)
