"""Plays logs in the environments of an imported run: the work of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fate_gym.episode import Episode
from fate_gym.errors import ProviderError
from fate_gym.evaluation.config import EvalConfig
from fate_gym.evaluation.plan import Item, Plan
from fate_gym.evaluation.recorded import Recorded, bounds, differences
from fate_gym.evaluation.replaying import Recording, replay
from fate_gym.importing.comparing import compare_answers
from fate_gym.importing.logs import Header, Log, Reader


@dataclass(frozen=True, slots=True)
class Piece:
    """A log, and the place of its episode in the plan."""

    item: Item
    header: Header


class LogPlayer:
    """Plays logs. It is a worker (`fate_gym.evaluation.workers`).

    Args:
        reader: Reads them.
        config: The run's settings. The plan that follows from them is made once in each process.
    """

    def __init__(self, reader: Reader, config: EvalConfig) -> None:
        self._reader, self._config = reader, config
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    async def play(self, pieces: Sequence[Piece]) -> list[tuple[Episode, Recorded]]:
        """Returns the episode of each log with what the log said of it."""
        if self._plan is None:
            self._plan = self._config.plan()
        # In a thread, since a reader may have an event loop of its own.
        logs = await asyncio.to_thread(lambda: [self._reader.read(piece.header) for piece in pieces])
        played: dict[int, dict[str, Episode]] = {i: {} for i in range(len(pieces))}
        places: dict[Recording, tuple[int, str]] = {}

        def recordings() -> Iterator[tuple[Item, Recording]]:
            for i, (piece, log) in enumerate(zip(pieces, logs, strict=True)):
                over = log.cut or ProviderError("the log ends here")
                endings = {"": Recording(log.actions, over)}
                endings.update(
                    {
                        name: Recording((*log.actions, action), ProviderError("the log ends here"))
                        for name, action in log.other_endings.items()
                    }
                )
                for name, recording in endings.items():
                    places[recording] = i, name
                    yield piece.item, recording

        def keep(recording: Recording, episode: Episode) -> None:
            i, name = places.pop(recording)
            played[i][name] = episode

        await replay(self._plan, recordings(), keep, concurrency=1)
        return [_finished(log, played[i]) for i, log in enumerate(logs)]

    async def aclose(self) -> None:
        """Holds nothing that would have to be freed."""


def _finished(log: Log, played: dict[str, Episode]) -> tuple[Episode, Recorded]:
    """Returns the episode as it is stored, without what only its replay took, and the record beside it."""
    # The replay's own time and requests say nothing of the agent.
    seconds = {"total": log.seconds, "agent": None}
    episode = replace(played.pop(""), usage={}, attempts=None, seconds=seconds)
    readings = {
        name: {score: ours[0] for score in log.recorded.scores if (ours := bounds(other.verdict, score)) is not None}
        for name, other in played.items()
    }
    outputs = compare_answers(log.answers, episode)
    recorded = replace(log.recorded, key=episode.key, readings=readings, outputs=outputs)
    return episode, replace(recorded, differences=differences(recorded, episode.verdict, episode.ended))
