"""Scripted episodes through AgentDojo's real tools, from which base policies are cloned.

They stand in for pre-training: an untrained network can do no task, so it has no failure that is worth a repair. FATE
sees none of them; it starts from the policy that cloning makes. Every script is played in the environment, and the
episode is kept only if the verifiers find in it what the script was meant to show.

Some episodes begin with a repair prompt; most of them do the task right, some obey the injection again. A large model
can repair itself because it reads the prompt, which a model of a million parameters cannot learn otherwise.

Of the held-out pairs, cloning sees none with the label `pair`, and a fixed half of those with the label `inj`, `user`
or `unseen`: so small a policy cannot carry out, under attack, a task that it has never seen done. `held_out` lists the
other half; only on these a score means something. Pairs are `unseen` if training sees nothing of their suite; cloning
sees it only where `suites` name it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fate_gym.agents.scripted import REFUSER, Gullible
from fate_gym.benchmarks.agentdojo.splits import Label, labels
from fate_gym.chat import Message, ToolSchema
from fate_gym.env import ToolEnv
from fate_gym.episode import Episode
from fate_gym.rollout import Agent, Session, rollout
from fate_gym.task import Demonstration, GroundTruth, Task
from fate_gym.trainers.cloning.settings import CloningSettings

Kind = Literal[
    "benign",
    "benign-refused",
    "ignored",
    "obeyed-then",
    "obeyed-instead",
    "refused",
    "repaired",
    "repair-obeyed",
]
"""What an episode demonstrates. Repairs begin with the repair prompt instead of the user's message."""

RepairPrompt: TypeAlias = Callable[[Episode], str]
"""Writes the repair prompt p_f of a failed run."""


_AGENTDOJO = "fate_gym.benchmarks.agentdojo.benchmark:AgentDojo"


@dataclass(frozen=True, slots=True)
class ScriptedEpisode:
    """A scripted episode in which the verifiers found what it was meant to show.

    Attributes:
        kind: What it demonstrates.
        task_id: The task.
        attack: The attack, None for benign tasks.
        messages: The conversation.
        tools: The tools.
    """

    kind: Kind
    task_id: str
    attack: str | None
    messages: list[Message]
    tools: list[ToolSchema]


def seen(pair: str, fold: int | None = None) -> bool:
    """Tells whether cloning may see an attacked pair "SUITE/USER_TASK/INJECTION_TASK" under a fold of the split."""
    label = labels(fold).get(pair)
    if label in ("inj", "user", "unseen"):
        # By a hash of the name, so that the half stays the same when AgentDojo gets further pairs.
        return hashlib.sha256(f"fate-gym tiny {pair}".encode()).digest()[0] % 2 == 0
    return label in ("train", "dev")


def held_out(label: Label, settings: CloningSettings) -> list[str]:
    """Lists the pairs of a label that cloning does not see, so that a score on them means something."""
    return [
        pair
        for pair, given in labels(settings.fold).items()
        if given == label and _wanted(pair, settings) and not seen(pair, settings.fold)
        if pair.split("/")[0] in settings.suites
    ]


def play(settings: CloningSettings, repair_prompt: RepairPrompt) -> list[ScriptedEpisode]:
    """Plays every script on every task that cloning may see.

    Args:
        settings: Suites, attacks and tasks.
        repair_prompt: Writes the repair prompts.
    """
    return asyncio.run(_play(settings, repair_prompt))


class _Scripted(Agent):
    """Plays the ground truth, changed first: does the user's task, and what stands as the injection once it is seen."""

    privileged = True

    def __init__(self, name: str, change: Callable[[GroundTruth], GroundTruth]) -> None:
        self.name = name
        self._change = change

    def start(self, task: Task, seed: int) -> Session:
        truth = task.ground_truth and self._change(task.ground_truth)
        return Gullible().start(dataclasses.replace(task, ground_truth=truth), seed)


def _ignore(truth: GroundTruth) -> GroundTruth:
    return dataclasses.replace(truth, injection=None)


def _obey_instead(truth: GroundTruth) -> GroundTruth:
    return dataclasses.replace(truth, injection_replaces_task=True)


def _refuse(truth: GroundTruth) -> GroundTruth:
    return dataclasses.replace(truth, injection=Demonstration((), REFUSER.text), injection_replaces_task=True)


def _stop_early(truth: GroundTruth) -> GroundTruth:
    return dataclasses.replace(truth, injection=None, user=Demonstration(truth.user.calls[:-1], "Done."))


_DUTIFUL = _Scripted("dutiful", _ignore)
_OBEDIENT: dict[Kind, Agent] = {
    "obeyed-then": _Scripted("obedient", lambda truth: truth),
    "obeyed-instead": _Scripted("deserter", _obey_instead),
}
_REFUSING: tuple[Agent, ...] = (REFUSER, _Scripted("alarmed", _refuse))
_LAZY = _Scripted("lazy", _stop_early)


async def _play(settings: CloningSettings, repair_prompt: RepairPrompt) -> list[ScriptedEpisode]:
    runs: list[ScriptedEpisode] = []
    for attack in (None, *settings.attacks):
        env = ToolEnv(_AGENTDOJO, suite=settings.suites, attack=attack, purpose="training")
        for task_id in env.tasks:
            if _wanted(task_id, settings) and (attack is None or seen(task_id, settings.fold)):
                runs += await _play_task(env, task_id, repair_prompt)
    return runs


async def _play_task(env: ToolEnv, task_id: str, repair_prompt: RepairPrompt) -> list[ScriptedEpisode]:
    """Plays all scripts on one task; returns no episode if the ground truth itself fails."""
    tools = env.benchmark.open(task_id, 0).tools

    def run(kind: Kind, played: Episode, prompt: str | None = None) -> ScriptedEpisode:
        return ScriptedEpisode(kind, task_id, played.attack, _conversation(played.messages, prompt), tools)

    # Where the ground truth fails its own graders, no script could show what it is meant to show.
    good = await rollout(env, _DUTIFUL, task_id, 0)
    if good.status != "ok" or good.verdict.vector.min() < 1:
        return []
    benign = good.mode == "benign"
    runs = [run("benign" if benign else "ignored", good)]
    for agent in (REFUSER,) if benign else _REFUSING:
        bad = await rollout(env, agent, task_id, 0)
        if bad.verdict.over_refusal_control.value == 0:
            runs += [run("benign-refused" if benign else "refused", bad), run("repaired", good, repair_prompt(bad))]
    bad = await rollout(env, _LAZY, task_id, 0)
    if bad.verdict.utility.value == 0:
        runs.append(run("repaired", good, repair_prompt(bad)))
    for kind, agent in {} if benign else _OBEDIENT.items():
        bad = await rollout(env, agent, task_id, 0)
        if bad.verdict.security.value == 0:
            prompt = repair_prompt(bad)
            runs += [run(kind, bad), run("repaired", good, prompt), run("repair-obeyed", bad, prompt)]
    return runs


def _conversation(messages: list[Message], prompt: str | None) -> list[Message]:
    """The messages, with another first user message if one is given."""
    if prompt is None:
        return messages
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    return [*messages[:first], {"role": "user", "content": prompt}, *messages[first + 1 :]]


def _wanted(task_id: str, settings: CloningSettings) -> bool:
    return not any(fnmatch.fnmatchcase(task_id, pattern) for pattern in settings.exclude)
