r"""How AgentDojo places an injected text: into the YAML source of its environment, inside double quotes.

So the text is read as YAML: single line breaks become blanks, `\n` a line break, and a quote ends the string. What
AgentDojo's loader makes of a text is called *placed* here; what it must be given to place a text exactly, *literal*.
"""

import functools
import re
from typing import Any

import yaml

_LITERAL_HINT = 'use injection_encoding="literal" to place the text exactly as it is'
_ESCAPED = re.compile('["\\\\\x00-\x1f\x7f-\x9f\xa0\u2028\u2029\ufeff\ufffe\uffff]|^ ')


class PlacementError(ValueError):
    """AgentDojo's loader cannot place a text; the message says why."""


@functools.lru_cache(4096)
def read_quoted(source: str, *, key: bool = False) -> str:
    """Read a double-quoted YAML scalar as AgentDojo's loader reads it within the environment.

    Args:
        source: The scalar with its quotes, after injection.
        key: Whether it stands as a key of a mapping, which YAML keeps to one line of at most 1024 characters.

    Returns:
        The text between the quotes, folded and unescaped.

    Raises:
        PlacementError: If the source is not one scalar, e.g. since an injected quote ended it early.
    """
    try:
        loader: Any = yaml.SafeLoader(source + ": 0" if key else source)
        while not isinstance(token := loader.get_token(), yaml.ScalarToken):
            pass
        if token.end_mark.index == len(source):
            list(iter(loader.get_token, None))  # what follows must be sound as well
            return str(token.value)
        problem = "a quote in the text ends the YAML string it stands in"
    except yaml.YAMLError as error:
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    raise PlacementError(
        f"AgentDojo reads an injected text as part of a YAML string, which failed ({problem}); {_LITERAL_HINT}."
    )


def placed(text: str) -> str:
    """The text as an agent will read it after AgentDojo's placement, without blanks and line breaks at its ends.

    Raises:
        PlacementError: If AgentDojo's loader cannot place the text.
    """
    return read_quoted(f'"{text}"').strip()


def encode_literal(text: str) -> str:
    """Escape a text so that AgentDojo's own loader accepts it and places exactly this text.

    Raises:
        ValueError: If the text holds a lone surrogate, which no encoding of Unicode can carry.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"an injected text holds a lone surrogate at position {error.start}") from None
    return _ESCAPED.sub(lambda match: _escape(match[0]), text)


def _escape(char: str) -> str:
    return {'"': '\\"', "\\": "\\\\", "\n": "\\n"}.get(char, f"\\u{ord(char):04x}")
