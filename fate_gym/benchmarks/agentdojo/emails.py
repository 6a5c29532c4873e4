"""Email addresses validated once each, inside `remembered_emails()` and nowhere else.

Nearly all the time it takes to validate AgentDojo's largest environment goes into the same two hundred addresses.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pydantic.networks

_active: ContextVar[bool] = ContextVar("fate_gym_remembered_emails", default=False)
_validate = pydantic.networks.validate_email
_remembered = functools.lru_cache(maxsize=4096)(_validate)


@contextmanager
def remembered_emails() -> Iterator[None]:
    """Let pydantic's `EmailStr` remember, in this thread or task, which addresses are valid and how they are written.

    Validation is a function of the text alone, so results are the same; an address that fails is looked at each time.
    """
    pydantic.networks.validate_email = _dispatch
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def _dispatch(value: str) -> tuple[str, str]:
    return _remembered(value) if _active.get() else _validate(value)
