"""Stage 2, repair proposals: the same policy tries each failed task again, after reading how it failed.

A candidate is a whole episode in a fresh environment, the same world as the failure's. Only two things differ: the
user's first message is the repair prompt p_f instead of the task, and the sampling seed is the candidate's own. So
verifiers judge what the candidate really did, not what it says it would do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from fate_gym.agents import Agent
from fate_gym.chat import Json
from fate_gym.env import Observation
from fate_gym.episode import Episode
from fate_gym.evaluation.plan import Item
from fate_gym.rollout import Reply, Session
from fate_gym.storage import Fields
from fate_gym.task import Task
from fate_gym.trainers.config import with_current_prompt
from fate_gym.trainers.episodes import episode_record, read_episode
from fate_gym.trainers.round import Round
from fate_gym.trainers.stages._rollouts import roll_out, tokens_in
from fate_gym.trainers.stages.prompts import repair_prompt

MOST_CANDIDATES: Final = 64
"""Most candidates for a failure where repairs take what a budget leaves. A policy that fails no more, or that repairs
nothing in so many attempts, leaves tokens unspent."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A second attempt at a task that the policy failed on.

    Attributes:
        failure: The failed episode, a in the paper.
        attempt: The new episode, a'.
    """

    failure: Episode
    attempt: Episode


def repair(policy: str, failures: Sequence[Episode], this_round: Round) -> list[Repair]:
    """Samples K candidates for each failure, and executes and scores each of them.

    In the stage's file each record is an `Episode` with `failure`, the key of the failed one, beside it.

    Args:
        policy: The weights, the same that failed.
        failures: The episodes to repair.
        this_round: The round.

    Returns:
        The candidates that could be scored, in the order of the failures; none if the method learns from no repairs.

    Raises:
        FateGymError: Not one candidate could be scored.
        RunMismatchError: The stage's file was made from other inputs.
    """
    if not this_round.method.repairs:
        return []
    settings = this_round.config.repair
    tokens = this_round.tokens_for("repair")
    # The key of a candidate tells it from the others of its failure, and seeds its sampling.
    count = MOST_CANDIDATES if this_round.takes_the_rest("repair") else settings.candidates
    # First one candidate for every failure, then the second: so that a budget that ends leaves none out.
    failure_of = {f"{failure.key}~{k}": failure for k in range(count) for failure in failures}
    # The failure's own item, so that the candidate meets the same world: environment, task and seed.
    item_of = {item.key: item for item in this_round.items}
    items = [replace(item_of[failure.key], key=key) for key, failure in failure_of.items()]
    inputs = {**this_round.inputs(policy), "collect": this_round.digest("collect"), **asdict(settings)}
    inputs |= {} if tokens is None else {"budget": tokens}

    def record(attempt: Episode) -> dict[str, Json]:
        return episode_record(attempt, failure=failure_of[attempt.key].key)

    with this_round.stage_file("repair", inputs, upgrade=with_current_prompt) as file:
        if file.finished is None:
            with this_round.agent(policy, "repair") as agent:

                def reattempt(item: Item) -> Agent:
                    failure = failure_of[item.key]
                    prompt = repair_prompt(failure, settings.show) if settings.prompt == "repair_prompt" else None
                    return Reattempt(agent, prompt, _seed(item))

                errors = roll_out("repair", file, items, reattempt, record, this_round)
            counts: dict[str, Json] = {"errors": errors, "failures": len(failures), "tokens": tokens_in(file)}
            file.finish([f"{failure.key}~{k}" for failure in failures for k in range(count)], counts)
        return [Repair(_failure(line, failure_of), read_episode(line, "failure")) for line in file.records]


def _failure(line: Fields, failure_of: Mapping[str, Episode]) -> Episode:
    key = line.text("key")
    if key not in failure_of:
        raise line.problem("key", f"is {key!r}, which is no candidate for a failure of this round")
    return failure_of[key]


class Reattempt(Agent):
    """An agent that reads another first user message than the environment shows, and samples with its own seed.

    Args:
        agent: The agent that acts.
        prompt: Replaces the user's first message; None keeps it.
        seed: Replaces the episode's seed in the agent's session.
    """

    def __init__(self, agent: Agent, prompt: str | None, seed: int) -> None:
        self.name = agent.name
        self._agent, self._prompt, self._seed = agent, prompt, seed

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        session = self._agent.start(task, self._seed)
        return session if self._prompt is None else _Prompted(session, self._prompt)


class _Prompted:
    def __init__(self, session: Session, prompt: str) -> None:
        self._session, self._prompt = session, prompt

    async def act(self, observation: Observation) -> Reply:
        # A copy: the environment's own conversation, which the graders read, must not know of the repair prompt.
        messages = list(observation["messages"])
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[first] = {**messages[first], "content": self._prompt}
        return await self._session.act({**observation, "messages": messages})


def _seed(item: Item) -> int:
    """Derives a candidate's sampling seed from the failure's and its own key: with one seed, all K would be equal."""
    return int.from_bytes(hashlib.sha256(f"{item.seed}/{item.key}".encode()).digest()[:4], "big") >> 1
