"""The style of all pictures of the trainers, and the writing of PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

BLUE: Final = "#0072B2"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
COLOURS: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
"""Okabe and Ito's palette (2008), which the colour-blind can tell apart."""

_STYLE: Final[dict[str, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def panels(path: Path, count: int, *, columns: int, width: float = 4.2, height: float = 3.4) -> Iterator[list[Any]]:
    """Gives empty panels to draw into, then writes them as a PNG file; the same drawing gives the same bytes.

    Args:
        path: The file; its folder is made.
        count: Number of panels.
        columns: Panels in a row; the last row may have fewer.
        width: Width of a panel, in inches.
        height: Height of a panel, in inches.

    Yields:
        Matplotlib's axes, `count` of them.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    # Neither pyplot nor a backend's state: training may run in a program that draws its own pictures.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        FigureCanvasAgg(figure)
        yield [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the software's version, which would change the file from one machine to the next.
        figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
