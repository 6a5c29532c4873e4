"""Errors that users of the package meet; each message says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns "; did you mean NAME?" with the known name most like the given one, "" if none is like it."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """Says that there is no thing of this name, which one was probably meant, and which there are."""
    names = list(known)
    return f"unknown {kind} {given!r}{did_you_mean(given, names)}; there are: {', '.join(names)}"


class FateGymError(Exception):
    """Base of every error that fate-gym raises on purpose."""


class UsageError(FateGymError):
    """Settings ask for something that cannot be: an unknown model, a missing key, a budget without prices."""


class PluginError(FateGymError):
    """Code that the user named (an agent, a benchmark, a judge) raised; the cause is what it raised."""


class DataError(FateGymError):
    """A benchmark's data file is missing, unreadable, or not the one it should be."""


class SnapshotError(FateGymError):
    """A snapshot is damaged, or belongs to an environment of another specification."""


class JudgeError(FateGymError):
    """A judge (a model or a function that grades) gave no judgement.

    Args:
        message: What happened.
        answered: Whether the judge was asked and its answer holds no judgement. What an agent wrote can bring that
            about, so it costs only the axis that the judge scores. A judge that could not be asked at all leaves the
            episode unscored.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class NoReplyError(FateGymError):
    """An agent gave no reply.

    Args:
        message: What happened.
        attempts: Requests that were made before giving up.
    """

    def __init__(self, message: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class ProviderError(NoReplyError):
    """An agent could not answer for a reason that says nothing about the policy (network, quota, crash)."""


class QuotaError(ProviderError):
    """The server is gone, or serves no more before money or another day comes: no further episode can be played."""


class CutError(NoReplyError):
    """Something other than the environment ends the episode: it is truncated, and scored as it stands.

    Args:
        message: What happened.
        attempts: Requests that were made before giving up.
        action: The agent's last message, whose calls are recorded and not run; None if there is none.

    Attributes:
        ended: Stands in the episode as the reason why it is over.
    """

    ended: ClassVar[str]

    def __init__(self, message: str, attempts: int = 0, action: object = None) -> None:
        super().__init__(message, attempts)
        self.action = action


class ContextOverflowError(CutError):
    """The conversation no longer fits the model's context."""

    ended = "context_overflow"


class EndlessReplyError(CutError):
    """The model does not end its reply."""

    ended = "endless_reply"


class AbortedError(CutError):
    """A defence stopped the agent."""

    ended = "aborted"


class CallsLeftError(CutError):
    """A limit other than the environment's left the calls of the last message unexecuted."""

    ended = "calls_left"


class LimitError(CutError):
    """A limit of another harness, of messages, tokens or time, ended the episode."""

    ended = "limit"


CUTS: Final = {
    cut.ended: cut for cut in (ContextOverflowError, EndlessReplyError, AbortedError, CallsLeftError, LimitError)
}
"""How episodes end that something other than the environment cut off; no action of such an episode says so."""


class WorkerError(FateGymError):
    """Processes that should share the work cannot be started, or end again and again."""


class LostError(WorkerError):
    """A piece of work was lost with several processes, one after the other: it may be what ends them."""


class RunError(FateGymError):
    """A folder cannot be used as the run that was asked for."""


class RunCorruptError(RunError):
    """A file of the run is damaged where a kill cannot have damaged it."""


class RunMismatchError(RunError):
    """The folder holds a run of other settings."""


class RunLockedError(RunError):
    """Another writer has the run open."""


class DiskError(RunError):
    """The file system refused a write (full, failing, removed meanwhile); what was written before is still whole."""
