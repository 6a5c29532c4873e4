"""What a run will take, before it begins: episodes, tokens, cost."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fate_gym.benchmark import Benchmark
from fate_gym.evaluation.plan import Item, Plan

_SAMPLE: Final = 12
"""Tasks that are measured in each environment; the others are taken to be like them."""

_CHARACTERS_PER_TOKEN: Final = 4.0
"""A rule of thumb for English and JSON, right within a third for the tokenizers in use."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What episodes take at least: an agent that does what each task needs, a call a message, and nothing else.

    Attributes:
        prompt_tokens: Tokens to read, over all requests.
        completion_tokens: Tokens to write.
        solved: Whether that is the way of the ground truth. Where a benchmark has none, only the first request of
            each episode is counted.
    """

    prompt_tokens: int
    completion_tokens: int
    solved: bool

    def usage(self) -> Mapping[str, float]:
        """As agents report it."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}


def forecast(plan: Plan, items: Iterable[Item]) -> Forecast:
    """Measures a sample of the tasks, in characters. No model and no judge is asked.

    Args:
        plan: Has the environments.
        items: The episodes to run.
    """
    tasks: dict[int, Counter[str]] = defaultdict(Counter)
    for item in items:
        tasks[item.env_index][item.task_id] += 1
    read = written = 0.0
    solved = True
    for env_index, counts in tasks.items():
        benchmark = plan.benchmarks[env_index]
        ids = list(counts)
        measured = [_measure(benchmark, task_id) for task_id in ids[:: -(-len(ids) // _SAMPLE)]]
        episodes = counts.total() / len(measured)
        read += episodes * sum(each.prompt_tokens for each in measured)
        written += episodes * sum(each.completion_tokens for each in measured)
        solved = solved and all(each.solved for each in measured)
    return Forecast(round(read), round(written), solved)


def _measure(benchmark: Benchmark, task_id: str) -> Forecast:
    """Measures the requests of one episode, each of which holds all that was said before."""
    world = benchmark.open(task_id, 0)
    try:
        demonstration = benchmark.ground_truth(task_id).user
        calls, answer = demonstration.calls, demonstration.answer
    except Exception:  # It has none, or a third party's raises: either way nothing is known of the tasks.
        demonstration, calls, answer = None, (), ""
    conversation = _length(world.opening) + _length(world.tools)
    read, written = conversation, len(answer)
    for name, arguments in calls:
        call = _length({"name": name, "arguments": arguments})
        conversation += call + len(world.call(name, dict(arguments)).text)
        read, written = read + conversation, written + call
    return Forecast(
        round(read / _CHARACTERS_PER_TOKEN), round(written / _CHARACTERS_PER_TOKEN), demonstration is not None
    )


def _length(value: object) -> int:
    return len(json.dumps(value, default=str))
