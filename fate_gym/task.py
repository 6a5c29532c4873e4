"""What a task is: its identity and labels, the policy its licence sets, and its ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fate_gym.chat import Json

Mode = Literal["benign", "attacked", "harmful", "diagnosis"]
"""Which of the paper's task kinds a task is (FATE, Figure 1); it decides which axes are active."""

Purpose = Literal["evaluation", "training"]


@dataclass(frozen=True, slots=True)
class DataPolicy:
    """What a benchmark's licence and authors allow.

    Attributes:
        licence: Short name, such as "MIT".
        training: Whether its authors allow training on it.
        note: One sentence for users, "" if there is nothing to say.
        contamination: What a model that is trained on this has seen, such as "AgentHarm/validation", where the authors
            ask not to; stands in everything that is made from it. "" if training does no harm.
    """

    licence: str
    training: bool
    note: str = ""
    contamination: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Calls in order, and the final text, that do what was asked."""

    calls: tuple[tuple[str, dict[str, Json]], ...]
    answer: str


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """How a task is solved. Only agents that declare themselves privileged ever see it.

    Attributes:
        user: What the user asked for.
        injection: What the attacker asked for, in the state that the user's calls leave; None without injection.
        payloads: The injected texts as they read in a tool's output.
        injection_replaces_task: Whether obeying means dropping the user's task (denial of service).
    """

    user: Demonstration
    injection: Demonstration | None = None
    payloads: tuple[str, ...] = ()
    injection_replaces_task: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a benchmark.

    Attributes:
        id: Names the task in its benchmark, such as "banking/user_task_3/injection_task_2".
        mode: Decides which axes are active.
        suite: The part of the benchmark under which results are broken down.
        cluster: Tasks with the same cluster are variations of one another (one user task under many injections);
            intervals resample clusters, not tasks.
        attack: Name of the attack, or None.
        metadata: What is known of the task, such as defects of its grader.
        ground_truth: None, except in the copy that a privileged agent is given.
    """

    id: str
    mode: Mode
    suite: str
    cluster: str
    attack: str | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)
    ground_truth: GroundTruth | None = None
