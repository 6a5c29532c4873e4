"""How anything becomes text of a page: escaped, visible, cut, and named so that no name can do harm."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fate_gym.rendering import visible

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST: Final = 20_000
"""Characters of one text that a page shows."""

PAGE: Final = 700_000
"""Bytes that the texts of one page may take together, escaped; with its tags a page stays below 1 MB."""

NOTHING: Final = "–"  # noqa: RUF001 (a dash, as in tables)
"""Stands where there is no value."""


def slug(name: str, longest: int = 48) -> str:
    """Makes a file's name of any name: letters, digits and hyphens, and a hash that keeps different names apart."""
    safe = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:longest]
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()
    return f"{safe}-{digest[:6]}" if safe else digest[:12]


def short(text: str, longest: int) -> str:
    """Cuts a text for a place where the whole of it cannot stand."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def percent(value: float | None) -> str:
    """A share as a per cent with one decimal, without its sign; a dash for None."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points with one decimal and its sign; a dash for None."""
    if value is None:
        return NOTHING
    # The tenth that is shown decides: a difference that rounds to nothing has no sign.
    shown = round(100 * value, 1)
    return f"{shown:+.1f}".replace("-", "\u2212") if shown else "0.0"


def number(value: float | None) -> str:
    """A number with three significant digits; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A text as far as it is shown.

    Attributes:
        text: What is shown of it.
        left_out: Number of characters that are not.
    """

    text: str
    left_out: int


class Budget:
    """What the texts of one page may still take.

    Args:
        size: Bytes, escaped.
    """

    def __init__(self, size: int = PAGE) -> None:
        self._left = size

    def take(self, text: str, longest: int = LONGEST) -> Cut:
        """Returns as much of a text as there is room for."""
        kept = text[:longest]
        while (size := _size(kept)) > self._left:
            kept = kept[: len(kept) // 2]
        self._left -= size
        return Cut(kept, len(text) - len(kept))


def _size(text: str) -> int:
    from markupsafe import escape

    return len(escape(visible(text)).encode())


@functools.cache
def environment() -> Environment:
    """The one environment of all templates. Everything that a template prints is made visible and escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = Environment(
        loader=PackageLoader("fate_gym.leaderboards.site"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(percent=percent, points=points, number=number, short=short)
    # What a template prints as JSON is encoded already, since its size counts; `tojson` makes it safe in HTML.
    made.policies["json.dumps_function"] = lambda encoded, **_: encoded
    return made


def render_page(template: str, root: str, values: Mapping[str, object]) -> str:
    """Renders a template.

    Args:
        template: Its name without the suffix.
        root: Relative address of the site's top folder, "" or one that ends in a slash.
        values: What the template reads.
    """
    return environment().get_template(f"{template}.html.j2").render(root=root, **values)


def write_page(path: Path, template: str, root: str, values: Mapping[str, object]) -> None:
    """Renders a template into a file, whose folder is there; see `render_page`."""
    path.write_bytes(render_page(template, root, values).encode())
