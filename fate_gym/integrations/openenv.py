"""An OpenEnv server (0.10) of an environment; OpenEnv's own clients play it.

    uvicorn.run(openenv_app("fate/AgentDojo-v0", suite="banking"), host="127.0.0.1", port=8000)

    async with GenericEnvClient(base_url="http://127.0.0.1:8000") as client:
        result = await client.reset(seed=0, task_id="banking/user_task_0/none")
        result = await client.step({"message": reply})

OpenEnv's reward is one number, so it is the scalarised one, and None before the end; the vector, the mask and the
verdict are fields of the last observation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from fate_gym.chat import Json
from fate_gym.env import ToolEnv
from fate_gym.rewards import AXES

try:
    from openenv.core.env_server import Action, Environment, Observation, State, create_app
except ImportError as error:
    raise ImportError("this needs one more package: pip install 'fate-gym[openenv]'") from error

_SPLIT = "all"


class FateAction(Action):  # type: ignore[misc]
    """An assistant message: a dict in OpenAI's format, or a text."""

    message: dict[str, Any] | str


class FateObservation(Observation):  # type: ignore[misc]
    """What the agent sees, and at the end the verdict.

    Attributes:
        messages: The conversation.
        tools: The tools; [] where there are none.
        task_id: The task.
        injection_reached: Whether an injected text has stood in a tool message.
        ended: Why the episode is over, None while it runs.
        truncated: Whether it was cut off.
        reward_vector: Axis -> value; at the end only.
        reward_mask: Axis -> whether it counts; at the end only.
        verdict: Axis -> value, rule and evidence; at the end only.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []  # noqa: RUF012 (pydantic copies it)
    task_id: str
    injection_reached: bool = False
    ended: str | None = None
    truncated: bool = False
    reward_vector: dict[str, float] | None = None
    reward_mask: dict[str, bool] | None = None
    verdict: dict[str, Any] | None = None


class FateState(State):  # type: ignore[misc]
    """Where an episode stands."""

    task_id: str | None = None


class FateEnvironment(Environment[FateAction, FateObservation, FateState]):  # type: ignore[misc]
    """One session of a client.

    Args:
        env_id: Gymnasium id of one of our environments.
        options: Its options.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env_id: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        made: Any = gym.make(env_id, **options)
        self._env: ToolEnv = made.unwrapped
        self._state = FateState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        task_id: str | None = None,
        index: int | None = None,
        split: str = _SPLIT,
        **unknown: Any,
    ) -> FateObservation:
        """Starts an episode of the task with this id or place; of one that the seed picks, if neither is given.

        Raises:
            ValueError: There is no such task, or another argument is given.
        """
        if unknown:
            raise ValueError(f"unknown arguments of reset: {', '.join(unknown)}; there are seed, task_id and index")
        if task_id is None and index is not None:
            task_id = self.get_task(split, index)["id"]
        observation, info = self._env.reset(seed=seed, options={"task_id": task_id})
        self._state = FateState(episode_id=episode_id, step_count=0, task_id=info["task_id"])
        return FateObservation(**observation, task_id=info["task_id"])

    def step(self, action: FateAction, timeout_s: float | None = None, **kwargs: Any) -> FateObservation:
        """Takes one assistant message."""
        observation, reward, terminated, truncated, info = self._env.step(action.message)
        self._state.step_count += 1
        shown = FateObservation(**observation, task_id=info["task_id"], injection_reached=info["injection_reached"])
        if terminated or truncated:
            verdict = info["verdict"]
            shown.done, shown.reward = True, float(reward)
            shown.ended, shown.truncated = info["ended"], truncated
            shown.reward_vector = {name: axis.value for name, axis in verdict.axes.items()}
            shown.reward_mask = {name: axis.active for name, axis in verdict.axes.items()}
            shown.verdict = verdict.to_json()
        return shown

    @property
    def state(self) -> FateState:
        """Where the episode stands."""
        return self._state

    def list_splits(self) -> list[str]:
        """Returns the one split there is: `split=` of the environment has chosen already."""
        return [_SPLIT]

    def num_tasks(self, split: str) -> int:
        """Returns the number of tasks."""
        return len(self._tasks(split))

    def list_tasks(self, split: str) -> list[dict[str, Json]]:
        """Returns all tasks."""
        return self.get_task_range(split)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Returns the task at a place.

        Raises:
            IndexError: There is none.
        """
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(index)
        return self._describe(index)

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Json]]:
        """Returns the tasks at some places, by the rules of slices."""
        return [self._describe(index) for index in range(self.num_tasks(split))[start:stop]]

    def close(self) -> None:
        """Frees the environment."""
        self._env.close()

    def _tasks(self, split: str) -> Sequence[str]:
        return self._env.tasks if split == _SPLIT else ()

    def _describe(self, index: int) -> dict[str, Any]:
        task = self._env.task(self._env.tasks[index])
        return {"id": task.id, "index": index, "suite": task.suite, "mode": task.mode}


def openenv_app(env_id: str, *, max_sessions: int = 32, **options: Any) -> Any:
    """Makes the FastAPI application of an environment, for uvicorn or any other server.

    Args:
        env_id: Gymnasium id of one of our environments.
        max_sessions: Clients at once.
        **options: Options of the environment. `purpose` is "training" unless it is given, because a server cannot know
            what its clients do; `scalarization` weighs all axes alike unless it is given.

    Raises:
        FateGymError: The benchmark's authors ask not to train on it.
        ValueError, TypeError: An option makes no sense or is unknown.
    """
    options = {"purpose": "training", **options}
    if options.get("scalarization") is None:
        options["scalarization"] = dict.fromkeys(AXES, 1.0)
    factory = functools.partial(FateEnvironment, env_id, options)
    factory().close()
    name = env_id.rpartition("/")[2]
    return create_app(
        factory,
        FateAction,
        FateObservation,
        env_name=name,
        max_concurrent_envs=max_sessions,
        state_cls=FateState,
    )
