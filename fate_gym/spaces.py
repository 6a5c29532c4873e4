"""Observation and action spaces for chat.

They are our own because `gymnasium.spaces.Text` silently returns a constant string from an `AsyncVectorEnv` with
shared memory; these raise there, and work with `shared_memory=False`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory

_WORDS = ("account", "book", "calendar", "channel", "done", "email", "file", "flight", "meeting", "please", "the")
_ROLES = ("system", "user", "assistant", "tool")


class _PlainSpace(gym.Space[Any]):
    """A space of plain Python objects, with no array form."""

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def _words(self) -> str:
        return " ".join(self.np_random.choice(_WORDS, size=int(self.np_random.integers(1, 9))))


class TextSpace(_PlainSpace):
    """Texts of any length and characters, which `gymnasium.spaces.Text` would bound."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draws a few words."""
        return self._words()

    def contains(self, x: Any) -> bool:
        """Returns whether `x` is a string."""
        return isinstance(x, str)


class ActionSpace(_PlainSpace):
    """Assistant messages: a dict, an SDK message object, or a string.

    `contains` accepts well-formed actions; `ToolEnv.step` accepts any object.
    """

    def sample(self, mask: Any = None, probability: Any = None) -> dict[str, Any]:
        """Draws a final answer of a few words; calls cannot be drawn, since an action space does not know the tools."""
        return {"role": "assistant", "content": self._words()}

    def contains(self, x: Any) -> bool:
        """Returns whether `x` is a string, a dict with the role of the assistant, or an object with `model_dump`."""
        if isinstance(x, dict):
            return bool(x.get("role", "assistant") == "assistant")
        return isinstance(x, str) or callable(getattr(x, "model_dump", None))


class ObservationSpace(_PlainSpace):
    """Conversations: `{"messages": [...]}`, with `"tools": [...]` where there are tools, and no other key."""

    def sample(self, mask: Any = None, probability: Any = None) -> dict[str, Any]:
        """Draws a conversation of one user message."""
        return {"messages": [{"role": "user", "content": self._words()}]}

    def contains(self, x: Any) -> bool:
        """Returns whether `x` can be passed to an API as `create(model=..., **x)`."""
        if not isinstance(x, dict) or not {"messages"} <= set(x) <= {"messages", "tools"}:
            return False
        messages, tools = x["messages"], x.get("tools", [{}])
        if not isinstance(messages, list) or not isinstance(tools, list) or not tools:
            return False
        return all(isinstance(message, dict) and message.get("role") in _ROLES for message in messages)


@create_shared_memory.register(_PlainSpace)
def _refuse_shared_memory(space: _PlainSpace, n: int = 1, ctx: Any = None) -> None:
    raise CustomSpaceError(
        "conversations have no fixed size, so they cannot stand in shared memory: "
        "gym.make_vec(..., vectorization_mode='async', vector_kwargs={'shared_memory': False})"
    )
