"""A client of one server that speaks chat completions: OpenAI itself, vLLM, llama.cpp, transformers serve."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fate_gym.chat import Message
from fate_gym.errors import FateGymError, UsageError
from fate_gym.evaluation.config import public_url
from fate_gym.serving.completions import read_completion, read_stream
from fate_gym.serving.redaction import Redactor
from fate_gym.serving.retrying import Pacer, TransientError, interpret

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"

_NO_KEY = "unused"
"""Goes to servers that ask for no key, since the client insists on one."""


class ChatClient:
    """Posts chat completions, one request at a time or many at once, on one event loop.

    After `aclose` it may serve on another loop.

    Args:
        base_url: The server; None for OpenAI's own. A user and password in it go into a Basic Authorization header
            instead of the key, a query into every request.
        api_key_env: Environment variable that holds the key; a server of one's own may need none.
        timeout: Seconds for one whole request, however slowly its answer drips.
        requests_per_minute: Limit over all requests, or None.

    Attributes:
        url: The server's address, without secrets.

    Raises:
        ValueError: The address makes no sense, or the key is missing.
        UsageError: The openai package is missing.
    """

    def __init__(
        self, base_url: str | None, *, api_key_env: str, timeout: float, requests_per_minute: float | None = None
    ) -> None:
        _require_packages()
        self._key = os.environ.get(api_key_env)
        if not self._key and base_url is None:
            raise ValueError(f"no API key: set the environment variable {api_key_env}")
        given = OPENAI_URL if base_url is None else base_url
        self.url = public_url(given)
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must look like http://HOST:PORT/v1, got {self.url!r}")
        self._headers: dict[str, str] = {}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._redact = Redactor(self._key, given)
        self._timeout = timeout
        self._pacer = Pacer(requests_per_minute)
        self._client: openai.AsyncOpenAI | None = None

    async def request(self, body: Mapping[str, Any]) -> tuple[Message, dict[str, float]]:
        """Makes one request; returns the message and its usage. `RetryPolicy.run` makes it again where that may help.

        Args:
            body: The request; with `stream` in it the answer is streamed.

        Raises:
            TransientError, ContextOverflowError, ProviderError: As `interpret` says.
        """
        await self._pacer.turn()
        try:
            # The client's own timeout is one of silence: a dripping answer would never meet it.
            async with asyncio.timeout(self._timeout):
                return await self._exchange(body)
        except (TransientError, FateGymError):
            raise
        except Exception as error:
            raise interpret(error, self.url, self._redact) from None

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
            self._redact.uninstall()

    async def _exchange(self, body: Mapping[str, Any]) -> tuple[Message, dict[str, float]]:
        """Posts a request and reads the answer as plain JSON.

        `chat.completions.create` posts the same; but it walks every tool schema before and builds models after, which
        doubles the time of a request and drops what does not fit the models.
        """
        import openai

        client = self._connect()
        if not body.get("stream"):
            return read_completion(await client.post("/chat/completions", body=body, cast_to=object))
        stream = await client.post(
            "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        async with stream:
            return await read_stream(stream)

    def _connect(self) -> openai.AsyncOpenAI:
        import openai

        if self._client is None:
            self._redact.install()
            self._client = openai.AsyncOpenAI(
                base_url=self.url,
                api_key=self._key or _NO_KEY,
                default_headers=self._headers,
                default_query=self._query,
                timeout=self._timeout,
                max_retries=0,
                # A third less processor time a request than the default, which is what bounds many episodes at once.
                http_client=openai.DefaultAioHttpClient(base_url=self.url, timeout=self._timeout),
            )
        return self._client


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None: the server has its own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def check_positive(**numbers: float | None) -> None:
    """Checks that numbers, where they are given, are above 0.

    Raises:
        ValueError: One is not.
    """
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise ValueError(f"{name} must be positive, got {number}")


def _require_packages() -> None:
    try:
        import openai  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise UsageError(f"openai: needs a package that is not installed: pip install {error.name}") from error
