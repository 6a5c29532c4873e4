"""The environments for verifiers (0.4 and its trainers): tasks, the loop that plays them, and their rewards.

verifiers records every request that a harness makes, with the tokens that its training client samples, so the harness
here is our own loop: what `ToolEnv` shows goes to verifiers' endpoint, and what comes back is its action. A turn that
verifiers refuses (a limit of its own, a stop) truncates the episode, which is still scored.

Each axis is a reward of its name. The weights of the active ones sum to 1, as in `Scalarization`, so `trace.reward` is
their weighted mean; a reward is None where its axis is not active, and the metric `AXIS_active` is 0. The whole verdict
is `trace.info["fate_gym"]`.

verifiers finds all this as the plugin `fate_gym_verifiers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, get_args

import gymnasium as gym
from pydantic import Field, NonNegativeFloat

from fate_gym.agents.api import OpenAIAgent
from fate_gym.chat import Json
from fate_gym.env import ToolEnv
from fate_gym.errors import ContextOverflowError, EndlessReplyError, ProviderError
from fate_gym.rewards import AXES, Axis
from fate_gym.rollout import Session

try:
    import verifiers.v1 as vf
except ImportError as error:
    raise ImportError("this needs one more package: pip install 'fate-gym[verifiers]'") from error

_idle: defaultdict[str, list[ToolEnv]] = defaultdict(list)
"""Environments that no rollout uses, by specification: some take seconds to make."""


class FateTaskConfig(vf.TaskConfig):  # type: ignore[misc]
    """`--env.taskset.task.*`: weights of the axes in `trace.reward`."""

    weights: dict[Axis, NonNegativeFloat] = Field(default_factory=lambda: dict.fromkeys(get_args(Axis), 1.0))


class FateTasksetConfig(vf.TasksetConfig):  # type: ignore[misc]
    """`--env.taskset.*`: which environment.

    Attributes:
        task: Weights of the axes.
        env: Gymnasium id of one of our environments.
        options: Its options.
        purpose: "training" raises where the benchmark's authors ask not to train on it.
        seed: Seed of every episode.
    """

    task: FateTaskConfig = FateTaskConfig()
    env: str = "fate/AgentDojo-v0"
    options: dict[str, Any] = Field(default_factory=dict)
    purpose: Literal["training", "evaluation"] = "training"
    seed: int = 0


class FateData(vf.TaskData):  # type: ignore[misc]
    """What a rollout needs to make its environment; `id` is the task's."""

    env: str
    options: dict[str, Any]
    seed: int


class FateTask(vf.Task[FateData, vf.State, FateTaskConfig]):  # type: ignore[misc]
    """A task; the harness leaves its verdict on the trace."""

    async def score(self, trace: Any, runtime: Any = None) -> None:
        """Records the axes as rewards and the mask as metrics, then what else the configuration asks for."""
        if not self.scoring_deferred:
            verdict = trace.info.get("fate_gym", {}).get("verdict", {})
            active = [name for name in AXES if verdict.get(name, {}).get("active")]
            weights = {name: self.config.weights.get(name, 0.0) for name in active}
            total = sum(weights.values()) or 1.0
            for name in AXES:
                trace.rewards[name] = None
                trace.record_metric(f"{name}_active", float(name in active))
            for name, weight in weights.items():
                trace.record_reward(name, verdict[name]["value"], weight / total)
        await super().score(trace, runtime)


class FateTaskset(vf.Taskset[FateTask, FateTasksetConfig]):  # type: ignore[misc]
    """All tasks of an environment, in its order."""

    def load(self) -> Iterator[FateTask]:
        """Yields the tasks. Their prompt is for people who look at traces: the harness shows the whole opening."""
        config = self.config
        options = {**config.options, "purpose": config.purpose}
        with _lent(config.env, options) as env:
            task_ids = env.tasks
        for task_id in task_ids:
            with _lent(config.env, options) as env:
                opening = env.reset(seed=config.seed, options={"task_id": task_id})[0]["messages"]
            prompt = next((message["content"] for message in reversed(opening) if message["role"] == "user"), None)
            data = FateData(id=task_id, name=task_id, prompt=prompt, env=config.env, options=options, seed=config.seed)
            yield FateTask(data, config.task)


class FateHarness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
    """Plays a task in this process; every request goes through verifiers' endpoint."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: FateData
    ) -> Any:
        """Plays one episode.

        Raises:
            ProviderError: The model gave no usable answer; the rollout fails, and is not scored.
        """
        agent = _agent(ctx.model, endpoint, secret)
        try:
            with _lent(data.env, data.options) as env:
                info = await _play(env, agent, trace, data)
        finally:
            await agent.aclose()
        trace.info["fate_gym"] = _record(info)
        if info["status"] != "ok":
            raise ProviderError(f"{data.id} is not scored: {info['error']}")
        return vf.ProgramResult(0, "", "")


class FateEnvConfig(vf.EnvConfig):  # type: ignore[misc]
    """`--env.*`; the harness runs no code of the model, so that the agent needs no container."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig(), network_notice=False)


class FateEnv(vf.Env[FateEnvConfig]):  # type: ignore[misc]
    """One agent plays one task."""

    async def run(self, task: Any, agents: Any) -> None:
        """Runs the agent."""
        await agents.agent.run(task)


async def _play(env: ToolEnv, agent: OpenAIAgent, trace: Any, data: FateData) -> dict[str, Any]:
    """Plays an episode to its end, and returns the last info."""
    task_id = str(data.id)
    observation, _ = await asyncio.to_thread(env.reset, seed=data.seed, options={"task_id": task_id})
    session: Session = agent.start(env.task(task_id), data.seed)
    while True:
        try:
            reply = await session.act(observation)
        except (ContextOverflowError, EndlessReplyError) as cut:
            return (await asyncio.to_thread(env.truncate, type(cut).__name__))[4]
        except ProviderError:
            if trace.stop_condition is None:
                raise
            return (await asyncio.to_thread(env.truncate, trace.stop_condition))[4]
        observation, _, terminated, truncated, info = await asyncio.to_thread(env.step, reply.message)
        if terminated or truncated:
            return info


def _record(info: dict[str, Any]) -> dict[str, Json]:
    names = ("task_id", "status", "ended", "injection_reached")
    return {**{name: info[name] for name in names}, "verdict": info["verdict"].to_json()}


def _agent(model: str, endpoint: str, secret: str) -> OpenAIAgent:
    """Makes the agent that asks verifiers' endpoint. Retries and sampling are verifiers' own affair."""
    # The agent takes its key from a variable alone, so that no key stands in any settings.
    variable = f"FATE_GYM_VERIFIERS_{uuid.uuid4().hex}"
    os.environ[variable] = secret
    try:
        return OpenAIAgent(model, base_url=endpoint, max_tokens=None, max_attempts=1, api_key_env=variable)
    finally:
        del os.environ[variable]


@contextlib.contextmanager
def _lent(env_id: str, options: dict[str, Any]) -> Iterator[ToolEnv]:
    idle = _idle[json.dumps([env_id, options], sort_keys=True, default=str)]
    made: Any = None if idle else gym.make(env_id, **options)
    env: ToolEnv = idle.pop() if idle else made.unwrapped
    try:
        yield env
    finally:
        idle.append(env)
