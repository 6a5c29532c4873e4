"""Workers on a Ray cluster: each is an actor, wherever Ray finds a processor for it, and a GPU where it needs one.

The cluster is the one that `RAY_ADDRESS` names, or one that runs on this machine, or else a new one on this machine.
The package, and modules of the user's own, must be installed on every machine. Keys of APIs are never sent: an actor
reads them from the environment of its own machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from fate_gym.errors import UsageError, WorkerError
from fate_gym.evaluation.hosting import Answer, DiedError, Host, Sent

_MOST_AT_ONCE = 10_000
"""Calls that an actor may be at: the caller decides how many there are."""


class RayWorker:
    """A worker in an actor.

    Args:
        sent: What the worker is made of.
        on_gpu: Whether it takes a graphics card, which no other actor then sees or is given; None if it does where the
            cluster has any.

    Raises:
        UsageError: Ray is not installed.
        WorkerError: There is no cluster at the address, or none with the graphics card that the worker needs.
    """

    def __init__(self, sent: Sent, *, on_gpu: bool | None = False) -> None:
        _connect()
        import ray

        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        if on_gpu and not has_gpus:
            raise WorkerError("no machine of the Ray cluster has a graphics card, which the agent's `device` asks for")
        # A dead actor is replaced by the pool, which knows what it was at.
        options = {
            "num_cpus": 1,
            "num_gpus": int(has_gpus and on_gpu is not False),
            "max_restarts": 0,
            "max_concurrency": _MOST_AT_ONCE,
            "scheduling_strategy": "SPREAD",
        }
        self._actor: Any = ray.remote(Host).options(**options).remote(sent)

    async def start(self) -> Answer:
        """Returns when the worker is made, which waits for a free processor of the cluster."""
        return await self._call("start")

    async def do(self, work: Callable[..., Any], piece: object) -> Answer:
        """Has the worker do a piece of work."""
        return await self._call("do", work, piece)

    async def aclose(self) -> Answer:
        """Has the worker close itself, and ends the actor."""
        try:
            return await self._call("aclose")
        finally:
            self.end()

    def end(self) -> None:
        """Ends the actor at once."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    async def _call(self, method: str, *arguments: object) -> Answer:
        from ray.exceptions import RayActorError, RaySystemError

        try:
            answer: Answer = await getattr(self._actor, method).remote(*arguments)
        except (RayActorError, RaySystemError) as death:
            raise DiedError(_first_line(death)) from None
        return answer


def _connect() -> None:
    """Connects to the cluster, unless this process is connected already."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--backend ray needs Ray: pip install 'fate-gym[ray]'") from error
    if ray.is_initialized():
        return
    # A cluster that begins here reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        # What is logged in an actor comes back with its answers.
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WorkerError(f"there is no Ray cluster to use: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(":. ")
