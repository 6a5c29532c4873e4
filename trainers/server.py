"""Sampling from an OpenAI-compatible server, which gets each version of the weights before it is asked.

Weights go there in one of two ways. As adapters: the server keeps the weights that the training began with, and loads
what was learned since as one adapter (vLLM: `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True). Each version
has a name of its own, made from its content, so an answer that comes from another version is noticed, as is a server
that has restarted. Or by a command of the user's, which loads a folder of whole weights: then the name stays the same,
and only the correction in the loss (see `PFPOTrainer`) tells old weights from new.

TRL's own transfer of weights, over NCCL, is not used: it needs GPUs and its own server.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fate_gym.agents import Agent
from fate_gym.errors import NoReplyError, UsageError
from fate_gym.serving import ChatClient, RetryPolicy
from fate_gym.storage import folder_digest
from fate_gym.trainers.adapters import adapter_of, adapters_since, save_sum
from fate_gym.trainers.policy import Options
from fate_gym.trainers.processes import is_first_process, meet, of_first

_OF_THIS_PROCESS: Final = ("adapter", "attention", "cache_gib", "device", "dtype", "max_batch")
"""Options of `LocalAgent` that say how a model runs here."""

_FOLDER: Final = "{folder}"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A server to sample from.

    Attributes:
        base_url: The server, such as "http://127.0.0.1:8000/v1". It must see the folder of the training.
        model: The name that it gives to the policy before training; None for the policy's own.
        reload: A command that has it load whole weights, with "{folder}" where their folder belongs; None where it
            loads adapters. The command must leave nothing behind that was computed with other weights, such as a
            prefix cache.
        overlap: Whether PFPO samples the rollouts of the next step while it learns from those of this one. They are
            then one step old, for which the loss corrects (see `PFPOTrainer`). False has each step sample with its own
            weights, before it learns.
        timeout: Seconds for one request.
        max_attempts: Requests for one reply. A server that is started again takes minutes.
        api_key_env: Environment variable that holds the key, if the server wants one.

    Raises:
        ValueError: A number is out of its range, or the command names no folder.
    """

    base_url: str
    model: str | None = None
    reload: str | None = None
    overlap: bool = False
    timeout: float = 600.0
    max_attempts: int = 12
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.max_attempts < 1:
            raise ValueError("timeout must be positive, max_attempts at least 1")
        if self.reload is not None and _FOLDER not in self.reload:
            raise ValueError(f"reload must hold {_FOLDER}, where the weights will be")


class ServerSampler:
    """Samples at a server (see `sampling.Sampler`).

    Args:
        settings: The server.
        base: The policy before training, which the server has.
        options: Options of `LocalAgent`; those that say how a model runs in this process have no effect.
        out: The training's folder; the weights for the server are in its folder "served".
    """

    is_exact = False

    def __init__(self, settings: ServerSettings, base: str, options: Options, out: Path) -> None:
        self._settings, self._base, self._out = settings, base, out.resolve() / "served"
        self._options = options
        self._retry = RetryPolicy(settings.max_attempts)
        self.overlaps = settings.overlap

    def agent(self, policy: str, **options: Any) -> Agent:
        """Returns an agent that plays the weights, after the server has loaded them.

        Raises:
            UsageError: The server does not load them, or no adapters lead to them.
        """
        if self._settings.reload is not None:
            return self._agent(policy, Weights(self._settings, Path(policy)), options)
        adapters = adapters_since(self._base, policy)
        if not adapters:
            return self._agent(policy, Weights(self._settings, None, self._base), options)
        save_sum(adapters, self._base, fresh := self._out / "new")
        return self._agent(policy, Weights(self._settings, self._named(fresh)), options)

    @contextlib.contextmanager
    def learner(self, trainer: Any, policy: str, **options: Any) -> Iterator[Agent]:
        """Yields an agent that plays the trainer's present weights, after the server has loaded them."""
        weights = Weights(self._settings, self._save(trainer, policy))
        agent = self._agent(policy, weights, options)
        # No process asks for them before the first one has had the server load them.
        meet()
        try:
            yield agent
        finally:
            asyncio.run(agent.aclose())

    def _save(self, trainer: Any, policy: str) -> Path:
        """Saves the present weights, and returns their folder once they are there."""
        import accelerate

        accelerator = trainer.accelerator
        # The shards of all processes, put together; a plain model gives its own tensors.
        alone = accelerator.distributed_type == accelerate.utils.DistributedType.NO
        state = None if alone else accelerator.get_state_dict(trainer.model_wrapped)
        model = accelerator.unwrap_model(trainer.model)
        fresh = self._out / "new"
        if is_first_process():
            if self._settings.reload is not None:
                model.save_pretrained(fresh, state_dict=state)
                trainer.processing_class.save_pretrained(fresh)
            else:
                save_sum([*adapters_since(self._base, policy), adapter_of(model, state)], self._base, fresh)
            fresh = self._named(fresh)
        return self._out / of_first(fresh.name)

    def _named(self, fresh: Path) -> Path:
        """Gives a folder of weights the name of its content, and deletes those before it."""
        name = folder_digest(fresh)[:16]
        folder = fresh.with_name(name)
        if not folder.exists():
            fresh.rename(folder)
        for other in self._out.iterdir():
            if other != folder:
                shutil.rmtree(other)
        return folder

    def _agent(self, policy: str, weights: Weights, options: Options) -> Agent:
        from fate_gym.agents.served import ServedAgent

        if is_first_process():
            asyncio.run(weights.load())
        settings = self._settings
        client = ChatClient(settings.base_url, api_key_env=settings.api_key_env, timeout=settings.timeout)
        given = {name: value for name, value in {**self._options, **options}.items() if name not in _OF_THIS_PROCESS}
        return ServedAgent(policy, client, weights.name, restore=weights.load, retry=self._retry, **given)


class Weights:
    """A version of the weights, as a server knows it.

    Args:
        settings: The server.
        folder: Whole weights, or an adapter; None for what the server has had from the start.
        base: Name of the policy before training.

    Attributes:
        name: The name by which the server is asked for them.
    """

    def __init__(self, settings: ServerSettings, folder: Path | None, base: str = "") -> None:
        self._settings, self._folder = settings, folder
        self.name = settings.model or base
        if folder is not None and settings.reload is None:
            self.name = f"fate-{folder.name}"
        self._retry = RetryPolicy(settings.max_attempts)

    async def load(self) -> None:
        """Has the server load them; it does no harm where the server has them.

        Raises:
            UsageError: The server or the command refuses.
        """
        if self._folder is None:
            return
        if self._settings.reload is not None:
            await asyncio.to_thread(self._run, self._settings.reload, self._folder)
            return
        client = ChatClient(
            self._settings.base_url, api_key_env=self._settings.api_key_env, timeout=self._settings.timeout
        )

        async def ask(folder: Path) -> None:
            await client.post("load_lora_adapter", {"lora_name": self.name, "lora_path": str(folder)})

        try:
            await self._retry.run(ask, self._folder)
        except NoReplyError as error:
            # The name is made from the content, so that weights of this name are these weights.
            if "already been loaded" not in str(error):
                raise UsageError(
                    f"{client.url} does not load adapters ({error}); vLLM does with --enable-lora, --max-lora-rank and "
                    f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                ) from None
        finally:
            await client.aclose()

    def _run(self, command: str, folder: Path) -> None:
        words = [word.replace(_FOLDER, str(folder)) for word in shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 (the user's own command)
        if done.returncode:
            raise UsageError(f"`sampler.reload` ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
