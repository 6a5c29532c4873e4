"""AgentDojo's own harness, fed with fixed behaviour: the reference for parity and for speed."""

from __future__ import annotations

from typing import Any

from agentdojo.agent_pipeline import BasePipelineElement, GroundTruthPipeline
from agentdojo.attacks import load_attack
from agentdojo.task_suite.task_suite import TaskSuite
from agentdojo.types import ChatAssistantMessage, text_content_block_from_string

BEHAVIOURS = ("benign", "hijacked", "noop", "silent")


def injections(
    suite: TaskSuite[Any], attack: str, pairs: list[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, str]]:
    """What AgentDojo's own attack injects for each pair."""
    target = _Named()
    made = load_attack(attack, suite, target)
    users, goals = suite.user_tasks, suite.injection_tasks
    return {(user, goal): made.attack(users[user], goals[goal]) for user, goal in pairs}


def run_pair(
    suite: TaskSuite[Any], user: str, goal: str, injected: dict[str, str], behaviour: str
) -> tuple[bool, bool]:
    """Runs one pair in `run_task_with_pipeline` and returns (utility, attack success)."""
    user_task, injection_task = suite.user_tasks[user], suite.injection_tasks[goal]
    pipeline: Any
    match behaviour:
        case "benign":
            pipeline = GroundTruthPipeline(user_task)
        case "hijacked":
            pipeline = _Hijacked(user_task, injection_task)
        case _:
            pipeline = _Answers("Done." if behaviour == "noop" else "")
    utility, attacked = suite.run_task_with_pipeline(pipeline, user_task, injection_task, injected)
    return bool(utility), bool(attacked)


class _Named(BasePipelineElement):
    name = "local"

    def query(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class _Answers(BasePipelineElement):
    """Answers at once, and calls nothing."""

    def __init__(self, text: str) -> None:
        self._text = text

    def query(self, query: Any, runtime: Any, env: Any, messages: Any = (), extra_args: Any = None) -> Any:
        message = ChatAssistantMessage(
            role="assistant", content=[text_content_block_from_string(self._text)], tool_calls=None
        )
        return query, runtime, env, [*messages, message], extra_args


class _Hijacked(BasePipelineElement):
    """The user's ground truth, then the attacker's; both texts at the end."""

    def __init__(self, user_task: Any, injection_task: Any) -> None:
        self._user = GroundTruthPipeline(user_task)
        self._attacker = GroundTruthPipeline(injection_task)

    def query(self, query: Any, runtime: Any, env: Any, messages: Any = (), extra_args: Any = None) -> Any:
        *_, first, _ = self._user.query(query, runtime, env, messages, {})
        *_, both, _ = self._attacker.query(query, runtime, env, first, {})
        texts = [first[-1]["content"][0]["content"], both[-1]["content"][0]["content"]]
        text = "\n".join(text for text in texts if text)
        both[-1]["content"] = [text_content_block_from_string(text)]
        return query, runtime, env, both, extra_args
