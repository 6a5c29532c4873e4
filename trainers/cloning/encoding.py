"""Scripted episodes as token ids: those that the policy would have read and sampled in playing them."""

from __future__ import annotations

from dataclasses import dataclass

from fate_gym.agents.chat_format import ChatFormat
from fate_gym.errors import UsageError
from fate_gym.trainers.cloning.demonstrations import ScriptedEpisode


@dataclass(frozen=True, slots=True)
class EncodedEpisode:
    """A scripted episode as token ids.

    Attributes:
        kind: What it demonstrates (`demonstrations.Kind`).
        ids: Token ids, (n,).
        mask: 1 on policy tokens, 0 on the others, (n,).
    """

    kind: str
    ids: list[int]
    mask: list[int]


def encode(chat: ChatFormat, run: ScriptedEpisode) -> EncodedEpisode:
    """Writes a run turn by turn, as `LocalAgent` goes about it.

    Args:
        chat: How the policy's conversations are written.
        run: The run; its last message is the policy's.

    Raises:
        UsageError: The chat template rewrites earlier turns, so that no one sequence holds the whole episode.
    """
    ids: list[int] = []
    mask: list[int] = []
    last: int | None = None
    read: tuple[int, ...] | None
    for index, message in enumerate(run.messages):
        if message["role"] != "assistant":
            continue
        before = run.messages[:index]
        if last is None:
            read = chat.prompt(before, run.tools)
        else:
            read = chat.continuation(before, last, run.tools, ended=True)
        written = chat.turn(message, run.tools)
        if read is None or written is None:
            raise UsageError("cloning needs a chat template that appends each turn to the last; name a chat_template")
        ids += [*read, *written]
        mask += [0] * len(read) + [1] * len(written)
        last = index
    return EncodedEpisode(run.kind, ids, mask)
