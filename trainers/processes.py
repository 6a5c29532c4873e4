"""The processes that train together. torchrun starts several, of which one alone may write files.

In the updates of weights all take part. What else a training does, the first does alone, and the others wait for it:
they find its files, and go on from the same values. So every process comes to the same meetings in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, TypeVar

from fate_gym.errors import FateGymError

T = TypeVar("T")

_PATIENCE: Final = timedelta(days=60)
"""How long a process waits for the others: collection takes hours. It hears at once of one that has ended."""

_FAILURE: Final = "fate-gym/failure"


def is_first_process() -> bool:
    """Whether this process writes the files that all of them share."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Returns the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> str:
    """Returns how the processes share the weights, as far as what they save depends on it; "" if each has them all.

    What FSDP saves is whole, and read by any number of processes; ZeRO saves the shards of so many.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return f"DeepSpeed in {process_count()} processes"
    return "FSDP" if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else ""


def meet() -> None:
    """Waits until all processes have come here."""
    if process_count() > 1:
        import torch

        torch.distributed.barrier(group=_group())


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Lets the first process do what is within; the others do it after that, and find what the first has done."""
    if not is_first_process():
        meet()
    yield
    if is_first_process():
        meet()


def of_first(value: T) -> T:
    """Returns in every process the value that the first one passes."""
    if process_count() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=_group())
    return values[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Connects the processes, and has one that fails end all of them: the others could only wait for it.

    Raises:
        FateGymError: Another process failed; the message says which, and why.
    """
    if process_count() == 1:
        yield
        return
    _group()
    try:
        yield
    except Exception as error:
        first = _tell(f"process {os.environ['RANK']} failed: {' '.join(str(error).split())}")
        # What an error of ours says is said in this process as well. Any other may be no more than the end of another
        # process, which breaks the connection to it.
        if isinstance(error, FateGymError):
            raise
        if first is not None:
            raise FateGymError(first) from None
        if "gloo" in str(error) or "NCCL" in str(error):
            raise FateGymError("another process has ended without a word, as where memory runs out") from error
        raise


@functools.cache
def _group() -> Any:
    """All processes, connected for waiting.

    Not by the backend of the training: on a GPU a wait would keep it busy, and would end after some minutes.
    """
    import accelerate
    import torch

    accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=30))
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def _tell(failure: str) -> str | None:
    """Tells the other processes of a failure, and returns what another one has told before, None if nothing."""
    import torch

    try:
        store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
        )
        told = store.compare_set(_FAILURE, "", failure).decode()
    except RuntimeError:
        # Without torchrun the first process keeps the store.
        return "process 0 failed"
    return None if told == failure else told
