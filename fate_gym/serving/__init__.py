"""Asking model servers: what agents and judges share."""

from fate_gym.serving._client import OPENAI_URL, ChatClient, MissingKeyError, check_positive, given
from fate_gym.serving._completions import Completion
from fate_gym.serving._failures import ModelFaultError, NotFoundError, TransientError, UnreachableError, UnusableError
from fate_gym.serving._redaction import Redactor, public_url
from fate_gym.serving._retrying import Pacer, RetryPolicy

__all__ = [
    "OPENAI_URL",
    "ChatClient",
    "Completion",
    "MissingKeyError",
    "ModelFaultError",
    "NotFoundError",
    "Pacer",
    "Redactor",
    "RetryPolicy",
    "TransientError",
    "UnreachableError",
    "UnusableError",
    "check_positive",
    "given",
    "public_url",
]
