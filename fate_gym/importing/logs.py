"""What an importer reads: logs of another harness, in the one form in which all of them are played and graded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fate_gym.chat import Json
from fate_gym.errors import CutError
from fate_gym.evaluation.recorded import Recorded


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A log that is not imported.

    Attributes:
        source: Its path below what was imported, and its line or sample.
        run: The run to which it would belong; "" where that is not known either.
        reason: Why not, one of few.
    """

    source: str
    run: str
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """What a plan must know of a log, without its messages: there may be a hundred thousand.

    Attributes:
        place: Where the log is: for its reader alone.
        source: Its path below what was imported, and its line or sample.
        run: The run to which it belongs.
        variant: Version of the benchmark; those of one run become runs of their own.
        task_id: The task.
        repeat: Which of the repeats of its task, from 0.
        attack: Name of the attack; None without one.
        injections: Vector -> text, where the log holds payloads that no registered attack makes; None elsewhere.
        package: Version of the package that wrote it; None where the log does not say.
        when: When it was written; None likewise.
        facts: What else `Reader.settings` needs of it.
    """

    place: Json
    source: str
    run: str
    variant: str
    task_id: str
    attack: str | None
    injections: Mapping[str, str] | None = None
    package: str | None = None
    when: str | None = None
    repeat: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Log:
    """One recorded episode.

    Attributes:
        actions: The assistant messages that acted, in order, as actions of an environment.
        cut: What cut the episode off; None where the last action ends it.
        answers: What the tools answered, in order.
        seconds: How long it took; None where the log does not say.
        recorded: The recorded verdict; its key, outputs and differences are filled in when the log has been played.
        other_endings: Name of a reading -> a last action that the log does not hold, and which was graded all the same.
    """

    actions: tuple[Json, ...]
    cut: CutError | None
    answers: tuple[str, ...]
    seconds: float | None
    recorded: Recorded
    other_endings: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment of an imported run.

    Attributes:
        env: Gymnasium id.
        env_args: Its arguments.
        agent: The model's name.
        defences: Around it, the innermost first.
        unknown: What the logs do not say.
        has_attacks: Whether the environment takes an attack.
    """

    env: str
    env_args: dict[str, Json]
    agent: str
    defences: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    has_attacks: bool = True


class Reader(ABC):
    """Reads the logs of one harness. Processes get copies of it, so that it holds no open files.

    Attributes:
        format: The harness's name.
    """

    format: str

    @abstractmethod
    def survey(self) -> Iterator[Header | LeftOut]:
        """Yields what there is, each log once."""

    @abstractmethod
    def settings(self, headers: Sequence[Header]) -> Settings:
        """Returns the environment that the logs of one run and variant were made in."""

    @abstractmethod
    def read(self, header: Header) -> Log:
        """Reads one log that `survey` has found."""
