"""Email addresses validated once each, inside `remembered_emails()` and nowhere else.

Nearly all the time it takes to validate AgentDojo's largest environment goes into the same two hundred addresses.
"""

import functools
from contextlib import AbstractContextManager

import pydantic.networks

from fate_gym.benchmarks.agentdojo.switch import Switch

_remembering = Switch("fate_gym_remembered_emails")
_validate = pydantic.networks.validate_email
_remembered = functools.lru_cache(maxsize=4096)(_validate)


def remembered_emails() -> AbstractContextManager[None]:
    """Let pydantic's `EmailStr` remember, in this thread or task, which addresses are valid and how they are written.

    Validation is a function of the text alone, so results are the same; an address that fails is looked at each time.
    """
    pydantic.networks.validate_email = _dispatch
    return _remembering.on()


def _dispatch(value: str) -> tuple[str, str]:
    return _remembered(value) if _remembering.is_on else _validate(value)
