"""One episode of one agent: the engine that evaluation and training share.

The contract of an agent is here; agents themselves are in `fate_gym.agents`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from fate_gym.env import Observation, ToolEnv
from fate_gym.episode import LEFT_OUT, MAX_COUNT, USAGE, Call, Episode, Sample, Shown, Trajectory
from fate_gym.errors import CutError, ProviderError
from fate_gym.pickling import Remade
from fate_gym.rewards import Verdict
from fate_gym.storage import is_finite
from fate_gym.task import Task
from fate_gym.transcript import Transcript

T = TypeVar("T")

_MOST: Final = MAX_COUNT // 10**6
"""The most that one reply may claim, so that the sums of an episode stay within what an episode may have."""

_MOST_THREADS: Final = 256
"""Calls of a plain function that may be under way at once; a thread begins only when it is needed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an agent answers.

    Attributes:
        message: The action: an assistant message, an SDK message or a string.
        usage: Tokens and cost of this call by name (`fate_gym.episode.USAGE`), where known. Others are left out.
        attempts: Requests that it took.
        sample: The sampled tokens, from a local model.
        finish_reason: Why the model stopped ("stop", "tool_calls", "length", ...), where it is known. It is
            "content_filter" where the provider's filter stopped it, "malformed_call" where the server could not read
            its call.
        shown: What the agent was shown, where a defence stands between it and the environment.
    """

    message: Any
    usage: dict[str, float] = field(default_factory=dict)
    attempts: int = 1
    sample: Sample | None = None
    finish_reason: str | None = None
    shown: Shown | None = None


class Session(Protocol):
    """An agent in one episode."""

    async def act(self, observation: Observation) -> Reply:
        """Answers an observation.

        Raises:
            CutError: The conversation no longer fits, or the model does not end its reply; the episode is truncated
                and scored.
            Exception: Anything else leaves the episode unscored, as a `provider_error`.
        """
        ...


class Agent(Remade, ABC):
    """Who acts. One agent serves many episodes at once, each through a session of its own.

    Where several processes play, each has an agent of its own, made by the call that made this one (`Remade`).

    Attributes:
        name: Stands in results.
        privileged: Whether it is given the ground truth (oracles).
        contaminated_by: Benchmark data that its model learned from against the authors' wish; stands in every run.
        unpriced: Whether its replies cannot say what they cost, so that no budget can be kept.
        on_gpu: Whether its model runs in its own process on a graphics card, so that a cluster must give each process a
            card; None if it takes one where there is one.
        defences: Texts of the defences around it, the innermost first.
        exhausted: Why no further episode can be played (a daily quota is spent, the server is gone), None while one
            can; a run then ends.
    """

    name: str
    privileged: bool = False
    contaminated_by: tuple[str, ...] = ()
    unpriced: bool = False
    on_gpu: bool | None = False
    defences: tuple[str, ...] = ()
    exhausted: str | None = None

    @abstractmethod
    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode; `task.ground_truth` is set only for privileged agents."""

    def cost(self, usage: Mapping[str, float]) -> float | None:
        """Returns what so many tokens cost.

        Args:
            usage: "prompt_tokens" and "completion_tokens", perhaps more, as in `Reply.usage`.

        Returns:
            USD; None where only a reply can say so, if anything does.
        """
        return None

    async def check(self, *, tools: bool = False) -> None:
        """Finds out, before a run, whether the agent can answer at all.

        Args:
            tools: Whether the run's environments have tools.

        Raises:
            UsageError: It cannot; one line says why.
        """
        return

    async def aclose(self) -> None:
        """Frees what the agent holds: connections, a model's memory."""
        return


ActFunction: TypeAlias = Callable[[Observation], Any]
"""The simplest agent: a function, plain or async, from observation to action (whatever `ToolEnv.step` takes)."""


class FunctionAgent(Agent):
    """An agent made of a function, which keeps no state between calls.

    A plain function runs in a thread for each call under way, so that one that waits for a server holds up no other
    episode; it must bear to be called from several threads at once. An async one runs on the event loop.
    """

    unpriced = True

    def __init__(self, function: ActFunction) -> None:
        self._function = function
        self._threads: ThreadPoolExecutor | None = None
        called = function if inspect.isroutine(function) else type(function).__call__
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        self.name = getattr(function, "__name__", type(function).__name__)

    def start(self, task: Task, seed: int) -> Session:
        """Begins an episode."""
        return self

    async def act(self, observation: Observation) -> Reply:
        """Asks the function.

        Raises:
            TypeError: It returned nothing: a slip in its code, which is no move of a policy.
        """
        action = self._function(observation) if self._is_async else await self._in_thread(observation)
        if inspect.isawaitable(action):
            action = await action
        if action is None:
            raise TypeError("it returned None; it must return an assistant message (is there a `return`?)")
        return Reply(action)

    async def aclose(self) -> None:
        """Ends the threads."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    async def _in_thread(self, observation: Observation) -> Any:
        if self._threads is None:
            # asyncio's own threads are few on a small machine, and episodes need them to step.
            self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix=self.name)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._function, observation)


def as_agent(agent: Agent | ActFunction) -> Agent:
    """Returns the agent itself, or makes one of a function.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(agent, Agent):
        return agent
    if isinstance(agent, type):
        raise TypeError(f"{agent.__name__} is a class: give an object of it, {agent.__name__}(...)")
    if not callable(agent):
        raise TypeError(f"an agent is an `Agent` or a function from observation to message, not {type(agent).__name__}")
    return FunctionAgent(agent)


async def rollout(
    env: ToolEnv,
    agent: Agent,
    task_id: str,
    seed: int,
    *,
    repeat: int = 0,
    key: str | None = None,
    on_fault: Callable[[BaseException], None] = lambda error: None,
) -> Episode:
    """Runs one episode. What may wait (a tool, a judge) runs in threads, so that it blocks no other episode.

    Args:
        env: Used by this episode alone while it runs.
        agent: Who acts.
        task_id: One of `env.tasks`.
        seed: Seeds the environment and the agent's session.
        repeat: Which of the repeats of its task it is.
        key: Its identity; made from attack, task and repeat if it is not given.
        on_fault: Called with an exception that code of the environment, a judge or the agent raised and that is not
            how such code says what it cannot do. The episode stands for it as an error.
    """
    meter = _Meter()
    task = env.task(task_id)
    injections: dict[str, str] = {}
    transcript = Transcript([])
    try:
        visible_task, observation, info = await _work(env, _begin, env, agent, task_id, seed)
        injections, transcript = info["injections"], env.transcript
        info = await _play(env, agent, visible_task, seed, observation, meter)
        if env.failure is not None:
            on_fault(env.failure)
    except ProviderError as failure:
        if isinstance(failure, _AgentFault):
            on_fault(failure.raised)
        meter.attempts += failure.attempts
        info = {"status": "provider_error", "error": str(failure)}
    except Exception as failure:
        on_fault(failure)
        info = {"status": "env_error", "error": f"{type(failure).__name__}: {failure}"}
    return _finished(task, seed, repeat, key, info, meter, transcript, injections)


def unplayed(task: Task, seed: int, *, repeat: int, key: str, error: str) -> Episode:
    """Returns the episode of a task that could not be played, and of which nothing is known but why."""
    info = {"status": "env_error", "error": error}
    return _finished(task, seed, repeat, key, info, _Meter(), Transcript([]), {})


def _finished(
    task: Task,
    seed: int,
    repeat: int,
    key: str | None,
    info: Mapping[str, Any],
    meter: _Meter,
    transcript: Transcript,
    injections: Mapping[str, str],
) -> Episode:
    return Episode(
        key=key or episode_key(task, repeat),
        repeat=repeat,
        task_id=task.id,
        mode=task.mode,
        suite=task.suite,
        cluster=task.cluster,
        attack=task.attack,
        metadata=task.metadata,
        seed=seed,
        status=info["status"],
        error=info.get("error"),
        ended=transcript.ended,
        truncated=transcript.truncated,
        verdict=info.get("verdict") or Verdict.unscored(info["error"]),
        injections=injections,
        injection_reached=transcript.injection_reached,
        messages=transcript.messages,
        actions=transcript.actions,
        calls=tuple(Call(call.turn, call.id, call.name, call.outcome) for call in transcript.calls),
        usage=meter.usage(),
        attempts=meter.attempts,
        seconds=meter.seconds(),
        shown=meter.shown(),
        trajectory=meter.trajectory(),
    )


def episode_key(task: Task, repeat: int) -> str:
    """Returns the identity of an episode in a run: `ATTACK/TASK_ID#REPEAT`."""
    return f"{task.attack or 'none'}/{task.id}#{repeat}"


def _begin(env: ToolEnv, agent: Agent, task_id: str, seed: int) -> tuple[Task, Observation, dict[str, Any]]:
    visible_task = env.task(task_id, privileged=agent.privileged)
    return visible_task, *env.reset(seed=seed, options={"task_id": task_id})


async def _play(
    env: ToolEnv, agent: Agent, task: Task, seed: int, observation: Observation, meter: _Meter
) -> dict[str, Any]:
    """Plays an episode that has been reset to its end, and returns the last info."""
    try:
        session = agent.start(task, seed)
    except Exception as error:
        raise _AgentFault(f"{agent.name} could not start", error) from error
    while True:
        try:
            reply = await meter.time(session.act(observation))
        except CutError as cut:
            meter.attempts += cut.attempts
            return (await _work(env, env.truncate, cut.ended, cut.action))[4]
        except (ProviderError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # What an agent awaits may have been cancelled by others; only this episode's own end goes on from here.
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            raise _AgentFault(f"{agent.name} failed", error) from error
        observation, _, terminated, truncated, info = await _work(env, env.step, reply.message)
        if terminated or truncated:
            return info


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _work(env: ToolEnv, method: Callable[..., T], *arguments: Any) -> T:
    """Has an environment begin or take a step: in a thread where it may wait, so that no other episode waits for it."""
    if env.benchmark.may_wait:
        return await asyncio.to_thread(method, *arguments)
    return method(*arguments)


class _AgentFault(ProviderError):
    """An agent raised what no agent should."""

    def __init__(self, what: str, raised: BaseException) -> None:
        super().__init__(f"{what}: {type(raised).__name__}: {raised}")
        self.raised = raised


class _Meter:
    """Adds up what an episode costs."""

    def __init__(self) -> None:
        self.attempts = 0
        self._replies: list[Reply] = []
        self._started = time.perf_counter()
        self._agent = 0.0

    async def time(self, act: Awaitable[Reply]) -> Reply:
        asked = time.perf_counter()
        try:
            reply = await act
        finally:
            self._agent += time.perf_counter() - asked
        self._replies.append(reply)
        self.attempts += reply.attempts
        return reply

    def seconds(self) -> dict[str, float]:
        return {"total": round(time.perf_counter() - self._started, 4), "agent": round(self._agent, 4)}

    def usage(self) -> dict[str, float]:
        """Sums what every reply reported; a sum with a part unknown would be a wrong number.

        Figures come from servers. One that is negative, not finite or absurd is as good as unknown, and is counted as
        left out; so is one that nobody here knows the meaning of.
        """
        usages = [
            {name: value for name, value in reply.usage.items() if name in USAGE and _is_sane(value)}
            for reply in self._replies
        ]
        known = set.intersection(*(set(usage) for usage in usages)) if usages else set()
        sums = {name: sum(usage[name] for usage in usages) for name in sorted(known)}
        left_out = sum(len(reply.usage) for reply in self._replies) - sum(map(len, usages))
        return {**sums, LEFT_OUT: left_out} if left_out else sums

    def shown(self) -> Shown | None:
        """Joins what the agent was shown; None where no defence stands around it."""
        parts = [reply.shown for reply in self._replies if reply.shown is not None]
        return sum(parts, Shown()) if parts else None

    def trajectory(self) -> Trajectory | None:
        """Joins what was sampled, if all of it is known: an episode with a turn missing could not be trained on."""
        samples = [reply.sample for reply in self._replies if reply.sample is not None]
        return Trajectory.join(samples) if len(samples) == len(self._replies) else None


def _is_sane(value: object) -> bool:
    return is_finite(value) and 0 <= value <= _MOST
