"""Run folders of as many episodes as one likes, with honest records: what `fate-gym eval` would have written.

    python tests/support/long_runs.py FOLDER REPEATS [LEFT_OUT]

Each of AgentDojo's 1,046 tasks is played once by each of three scripted agents. The repeats of a task differ in nothing
but key, seed and number, which are those of the plan, and in who of the three acts, which follows from the seed.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fate_gym.agents import REFUSER, Gullible, Oracle
from fate_gym.agents.scripted import ScriptedAgent
from fate_gym.episode import Episode
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.manifest import make_manifest
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.playing import Player, run_episodes
from fate_gym.evaluation.store import EPISODES, RunFolder
from fate_gym.evaluation.workers import InProcess
from fate_gym.rollout import Agent, Session
from fate_gym.storage import encode_line
from fate_gym.task import Task

_KINDS: Final = (Oracle(), Gullible(), REFUSER)


class Mixed(ScriptedAgent):
    """Withstands, obeys or refuses, by the episode's seed, as a model that samples would."""

    name = "mixed"
    privileged = True

    def start(self, task: Task, seed: int) -> Session:
        return _KINDS[seed % len(_KINDS)].start(task, seed)


MIXED: Final = Mixed()
ATTACKS: Final = (None, "important_instructions")


def long_config(out: Path, repeats: int, **settings: Any) -> EvalConfig:
    """Returns the settings of such a run: without attack and under one."""
    return EvalConfig("import:long_runs:MIXED", attack=ATTACKS, repeats=repeats, out=out, **settings)


def write_long_run(config: EvalConfig, left_out: int = 0) -> None:
    """Writes the run but for its last episodes, which the same settings complete."""
    plan = config.plan()
    first = [item for item in plan.items if item.repeat == 0]
    played = [_play(plan, first, agent) for agent in _KINDS]
    with RunFolder.open(config.out, make_manifest(config, plan, MIXED)) as run, (run.path / EPISODES).open("ab") as log:
        for item in islice(plan.items, len(plan.items) - left_out):
            head, middle, tail = played[item.seed % len(_KINDS)][item.env_index, item.task_id]
            log.write(
                b'%s"key":"%s","repeat":%d%s"seed":%d%s'
                % (head, item.key.encode(), item.repeat, middle, item.seed, tail)
            )


_Line = tuple[bytes, bytes, bytes]
"""The line of an episode without what differs between repeats."""


def _play(plan: Plan, items: list[Item], agent: Agent) -> dict[tuple[int, str], _Line]:
    found: dict[tuple[int, str], _Line] = {}

    async def keep(item: Item, episode: Episode) -> None:
        assert episode.status == "ok", episode.error
        line = encode_line(episode.to_json())
        head, rest = line.split(b'"key":"%s","repeat":%d' % (item.key.encode(), item.repeat), 1)
        found[item.env_index, item.task_id] = (head, *rest.split(b'"seed":%d' % item.seed, 1))

    workers = InProcess(Player(plan.environments, agent, lambda episode: episode))
    asyncio.run(run_episodes(items, workers, concurrency=8, on_done=keep))
    return found


if __name__ == "__main__":
    folder, repeats, *rest = sys.argv[1:]
    write_long_run(long_config(Path(folder), int(repeats)), *map(int, rest))
