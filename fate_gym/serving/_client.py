"""A client of one server that speaks chat completions: OpenAI itself, vLLM, llama.cpp, transformers serve."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from fate_gym.errors import UsageError
from fate_gym.serving._completions import LARGEST_BODY, AnswerReader, Completion, decompressed
from fate_gym.serving._failures import (
    NotFoundError,
    ServerError,
    TransientError,
    UnreachableError,
    UnusableError,
    failure,
)
from fate_gym.serving._patience import Patience
from fate_gym.serving._redaction import Redactor, public_url
from fate_gym.serving._retrying import Pacer

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

OPENAI_URL = "https://api.openai.com/v1"

LARGEST_ERROR = 100_000
"""Bytes that are read of an answer that is an error."""

_STILL_ARRIVING = 0.5
"""A reply that is cut by the timeout is the model's fault if some of it came in this last part of the time."""


class MissingKeyError(ValueError):
    """A server wants a key, and the environment holds none.

    Args:
        message: What to do.
        variable: The environment variable that should hold it.
    """

    def __init__(self, message: str, variable: str = "") -> None:
        super().__init__(message)
        self.variable = variable


class ChatClient:
    """Posts chat completions, and other requests, one request at a time or many at once, on one event loop.

    After `aclose` it may serve on another loop. The client of the `openai` package is not used: it reads a whole
    answer before its length is known, drops what does not fit its models, hides where a stream ends, and takes twice
    the processor time.

    Args:
        base_url: The server; None for OpenAI's own. A user and password in it go into a Basic Authorization header
            instead of the key, a query into every request.
        api_key_env: Environment variable that holds the key; a server that you run may need none.
        timeout: Seconds for one whole request, however slowly its answer drips.
        requests_per_minute: Limit over all requests, or None.

    Attributes:
        url: The server's address, without secrets.

    Raises:
        ValueError: The address makes no sense.
        MissingKeyError: The key is missing.
        UsageError: The aiohttp package is missing.
    """

    def __init__(
        self, base_url: str | None, *, api_key_env: str, timeout: float, requests_per_minute: float | None = None
    ) -> None:
        _require_packages()
        key = os.environ.get(api_key_env)
        if not key and base_url is None:
            raise MissingKeyError(f"no API key: set the environment variable {api_key_env}", api_key_env)
        address = OPENAI_URL if base_url is None else base_url
        self.url = public_url(address)
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must look like http://HOST:PORT/v1, got {self.url!r}")
        # Servers without keys ignore the header; some proxies insist on one.
        authorization = f"Bearer {key or 'unused'}"
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._headers = {
            "Authorization": authorization,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        self._query = parse_qsl(parts.query, keep_blank_values=True)
        self._redact = Redactor(key, address)
        self._timeout = timeout
        self._pacer = Pacer(requests_per_minute)
        self._session: aiohttp.ClientSession | None = None

    async def request(self, body: Mapping[str, Any]) -> Completion:
        """Makes one request. `RetryPolicy.run` makes it again where that may help.

        Args:
            body: The request; with `stream` in it the answer is streamed.

        Raises:
            TransientError, ContextOverflowError, ProviderError, QuotaError, ModelFaultError: As `failure` says.
        """
        await self._pacer.turn()
        patience = Patience(self._timeout)
        reader = AnswerReader(self.url, self._redact, clock=lambda: patience.spent)
        try:
            return await self._exchange("chat/completions", body, reader.read, patience)
        except TimeoutError:
            if reader.is_arriving(self._timeout * _STILL_ARRIVING):
                raise reader.endless(f"the reply did not end within {self._timeout:g} seconds") from None
            raise TransientError(f"{self.url} did not answer in time") from None

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Asks the server for something else than a chat completion.

        Args:
            path: Where, below the server's address, such as "completions".
            body: The request.

        Returns:
            The answer, parsed where it is JSON, else its text.

        Raises:
            TransientError, ContextOverflowError, ProviderError, QuotaError, ModelFaultError: As `failure` says.
        """
        await self._pacer.turn()
        try:
            return await self._exchange(path, body, self._read_plain, Patience(self._timeout))
        except TimeoutError:
            raise TransientError(f"{self.url} did not answer in time") from None

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _exchange(
        self, path: str, body: Mapping[str, Any], read: Callable[[AsyncIterator[bytes]], Awaitable[T]], time: Patience
    ) -> T:
        """Posts a request and reads its answer; raises TimeoutError when the time is over."""
        import aiohttp

        try:
            async with time:
                address = f"{self.url.rstrip('/')}/{path}"
                # A redirect would let another host answer in the model's place, and read the prompts.
                post = self._connect().post(address, params=self._query, data=_encoded(body), allow_redirects=False)
                async with post as response:
                    encoding = response.headers.get("Content-Encoding", "").strip().lower()
                    chunks = decompressed(response.content.iter_any(), encoding)
                    if response.status < 300:
                        return await read(chunks)
                    error = ServerError.read(
                        response.status, self._redact_bytes(await _beginning(chunks, LARGEST_ERROR))
                    )
                    raise self._hinted(failure(error, self.url, response.headers), error, path)
        except TimeoutError:
            raise  # aiohttp's own are connection errors too.
        except aiohttp.ClientConnectionError as error:
            # aiohttp names how TLS is checked ("ssl:default"), also where there is none.
            words = re.sub(r" ssl:(default|<.*?>)", "", str(error))
            raise UnreachableError(self._redact(f"no connection to {self.url}: {words}")) from None
        except (aiohttp.ClientError, ValueError) as error:
            # A broken header, chunk or address: aiohttp's own words may quote what the server sent.
            raise UnusableError(f"{self.url} sent a broken answer ({type(error).__name__})") from None

    async def _read_plain(self, chunks: AsyncIterator[bytes]) -> Any:
        content = await _beginning(chunks, LARGEST_BODY + 1)
        if len(content) > LARGEST_BODY:
            raise UnusableError(f"{self.url} sent an answer of more than {LARGEST_BODY} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            return content.decode("utf-8", "replace")

    def _hinted(self, found: Exception, error: ServerError, path: str) -> Exception:
        """Adds to a 404 what is often the cause, where the server does not say that it lacks the model."""
        is_path = isinstance(found, NotFoundError) and "model" not in error.message.lower()
        if not is_path or urlsplit(self.url).path.rstrip("/").endswith("/v1"):
            return found
        return NotFoundError(f"{found} (base_url usually ends in /v1; /{path} is added to it)")

    def _redact_bytes(self, content: bytes) -> bytes:
        """Blanks secrets before anything is cut: half a key is still a part of it."""
        return self._redact(content.decode("utf-8", "replace")).encode()

    def _connect(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            proxy = _proxy(self.url)
            encrypted = any(address.startswith("https:") for address in (self.url, proxy or ""))
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_certificates() if encrypted else True),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout),
                # Decompressing here bounds the memory that it takes.
                auto_decompress=False,
                # Not `trust_env`, which would let a login in ~/.netrc stand in for the key.
                proxy=proxy,
            )
        return self._session


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Returns a request as JSON in UTF-8. Most of it is what earlier requests held, so its encoding must be quick."""
    try:
        return orjson.dumps(body)
    except TypeError:  # An integer beyond 64 bits, or half of a surrogate pair, which a benchmark's texts may hold.
        return json.dumps(body).encode()


async def _beginning(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """Reads no more than so many bytes of a body."""
    content = b""
    async for chunk in chunks:
        content += chunk
        if len(content) >= most:
            break
    return content[:most]


def given(**options: Any) -> dict[str, Any]:
    """Returns the options that are not None: the server has defaults of its own."""
    return {name: value for name, value in options.items() if value is not None}


def check_positive(**numbers: float | None) -> None:
    """Checks that numbers, where they are given, are above 0.

    Raises:
        ValueError: One is not.
    """
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")


def _proxy(url: str) -> str | None:
    """Returns the proxy that the environment names for an address (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), or None."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _certificates() -> ssl.SSLContext:
    """Trusts the certificates of the system and, since some Pythons find none there, those of certifi."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context


def _require_packages() -> None:
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise UsageError(f"openai: needs a package that is not installed: pip install {error.name}") from error
