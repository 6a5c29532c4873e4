"""A switch for what stands in for a part of AgentDojo: on inside a `with` statement, in this thread or task alone."""

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token


class Switch:
    """Is off until someone turns it on.

    Args:
        name: Its name, for who debugs.
    """

    def __init__(self, name: str) -> None:
        self._state = ContextVar(name, default=False)

    @property
    def is_on(self) -> bool:
        """Whether it is on in this thread or task."""
        return self._state.get()

    def on(self) -> AbstractContextManager[None]:
        """Returns a context in which it is on. Contexts may be nested."""
        return _On(self._state)


class _On(AbstractContextManager[None]):
    """A class, since each tool call enters two of these, and entering a generator takes three times as long."""

    __slots__ = ("_before", "_state")
    _before: Token[bool]

    def __init__(self, state: ContextVar[bool]) -> None:
        self._state = state

    def __enter__(self) -> None:
        self._before = self._state.set(True)

    def __exit__(self, *error: object) -> None:
        self._state.reset(self._before)
