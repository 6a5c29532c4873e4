"""Keeps secrets out of what people read: error lines, logs, run folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

_SHORTEST = 6
"""A shorter text is no secret worth the name, and blanking it everywhere would ruin the line."""

_LOGGERS = ("httpx", "httpx2", "openai._base_client")
"""Who logs URLs and bodies. A filter holds for its own logger only, not for those below it."""


class Redactor(logging.Filter):
    """Blanks secrets, in texts and, while it is installed, in what the HTTP libraries log.

    Args:
        key: An API key, or None.
        url: An address whose user, password and query are secret.
    """

    def __init__(self, key: str | None, url: str) -> None:
        super().__init__()
        parts = urlsplit(url)
        values = [value for _, value in parse_qsl(parts.query)]
        secrets = {key, parts.username, parts.password, parts.query, *values}
        found = {form for secret in secrets if secret for form in (secret, unquote(secret))}
        # The longest first, or a secret that begins another would leave its tail.
        self._secrets = sorted((text for text in found if len(text) >= _SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Returns the text with every secret replaced."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Blanks secrets in a log record; never drops it."""
        record.msg, record.args = self(record.getMessage()), None
        return True

    def install(self) -> None:
        """Begins to filter the logs of the HTTP libraries."""
        for logger in _loggers():
            logger.addFilter(self)

    def uninstall(self) -> None:
        """Leaves the logs alone again."""
        for logger in _loggers():
            logger.removeFilter(self)


def _loggers() -> Iterable[logging.Logger]:
    return [logging.getLogger(name) for name in _LOGGERS]
