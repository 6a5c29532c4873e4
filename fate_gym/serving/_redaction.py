"""Keeps secrets out of what people read: error lines, run folders, replies."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

_SHORTEST = 6
"""A shorter text is hardly a secret, and blanking it everywhere would ruin many lines."""

_BLANK = "[redacted]"

_ESCAPES = frozenset({"%", "\\u", "\\x", "&#"})
"""What begins an escaped character, whichever it is."""

_BACKSLASHES = r"\\{1,32}"
"""As many as five layers of escapes put before a character. A pattern without a bound would take a time that grows with
the square of a long run of backslashes, which a model may write."""


class Redactor:
    """Blanks secrets in texts, in any form in which a server may echo them.

    Known forms of a secret, in any case of letters: as it is; percent-encoded, as a URL holds it; with JSON's, Python's
    or HTML's escapes; in base64, also within a longer text that was encoded; in hexadecimal digits.

    Args:
        key: An API key, or None.
        url: An address whose user, password and query values are secret.
    """

    def __init__(self, key: str | None, url: str) -> None:
        parts = urlsplit(url)
        values = [value for _, value in parse_qsl(parts.query)]
        given = {key, parts.username, parts.password, parts.query, *values}
        secrets = {form for secret in given if secret for form in (secret, unquote(secret)) if len(form) >= _SHORTEST}
        if parts.password:
            # A login travels as the base64 of both, which holds a password however short.
            secrets.add(f"{unquote(parts.username or '')}:{unquote(parts.password)}")
        # The longest first, or a secret that begins another would leave its tail.
        ordered = sorted(secrets, key=len, reverse=True)
        escaped = ["".join(map(_escaped, secret)) for secret in ordered]
        encoded = sorted({form for secret in secrets for form in _encodings(secret)}, key=len, reverse=True)
        punctuation = {character for character in "".join(secrets) if not character.isalnum()}
        self._escapes = _ESCAPES | {f"\\{character}" for character in punctuation}
        self._plain = [text.lower() for text in [*ordered, *encoded]]
        self._pattern = re.compile("|".join([*escaped, *map(re.escape, encoded)]), re.IGNORECASE) if secrets else None

    def __call__(self, text: str) -> str:
        """Returns the text with every secret replaced."""
        if self._pattern is None:
            return text
        # Every reply comes through here: looking for plain forms first is a hundred times as fast as the pattern.
        lowered = text.lower()
        escaped = any(mark in text for mark in self._escapes)
        if not escaped and not any(plain in lowered for plain in self._plain):
            return text
        return self._pattern.sub(_BLANK, text)


def public_url(url: str) -> str:
    """Returns an address without what may be secret in it: login, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _encodings(secret: str) -> Iterator[str]:
    """Yields a secret in hexadecimal digits and in base64, in the usual alphabet, in that of URLs, and in JSON."""
    data = secret.encode()
    yield data.hex()
    for core in _base64_cores(data):
        yield core
        yield core.replace("+", "-").replace("/", "_")
        yield core.replace("+", "%2B").replace("/", "%2F")
        yield core.replace("/", r"\/")


def _escaped(character: str) -> str:
    r"""Returns a pattern for one character: itself, %2F, \/, \u002f, \x2f, &#47; or &#x2f;."""
    percent = "".join(f"%{byte:02x}" for byte in character.encode())
    code = ord(character)
    forms = {
        re.escape(character),
        percent,
        rf"{_BACKSLASHES}u{code:04x}",
        rf"{_BACKSLASHES}x{code:02x}",
        f"&#{code};",
        f"&#x0*{code:x};",
    }
    if not character.isalnum():
        forms.add(rf"{_BACKSLASHES}{re.escape(character)}")
    return f"(?:{'|'.join(sorted(forms))})"


def _base64_cores(data: bytes) -> list[str]:
    """Returns the base64 of some bytes at each of the three places in a longer text, without what depends on that.

    Three bytes make four characters, so the first and last characters may also depend on the bytes beside them.
    """
    cores = []
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode().rstrip("=")
        start = (0, 2, 3)[offset]
        whole = (offset + len(data)) % 3 == 0
        core = encoded[start:] if whole else encoded[start:-1]
        if len(core) >= _SHORTEST:
            cores.append(core)
    return cores
