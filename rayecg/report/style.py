"""How figures look, and how they become bytes that depend on their content alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

#: Colours that stay apart for the colour-blind (Okabe and Ito 2008), the pale yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
DASHES = ("-", "--", ":", "-.")
INK, PALE, GRID, WARNING = "#1d2733", "#5d6b7a", "#e3e8ed", "#a8320a"
DPI = 150
#: Height of the strip that a warning takes, in inches.
STRIP = 0.26


@dataclass(frozen=True)
class Plot:
    """A figure with what is said of it.

    Attributes
    ----------
    name
        Of the file, without `.png`.
    section
        Of the page: `results`, `classes`, `labels`, `training` or `data`.
    title, caption
        Above and below the figure.
    alt
        What it shows, with its figures, for those who do not see it.
    figure
        The drawing.
    """

    name: str
    section: str
    title: str
    caption: str
    alt: str
    figure: Figure


def colour(i: int) -> str:
    """Give the i-th colour; the colours repeat, see `dash`."""
    return COLOURS[i % len(COLOURS)]


def dash(i: int) -> str:
    """Give the line style of the i-th series, which differs when its colour comes again."""
    return DASHES[i // len(COLOURS) % len(DASHES)]


def new_figure(width: float, height: float) -> Figure:
    """Open a figure of its own, in inches, without pyplot's global state."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=DPI)


def tidy(axes: Axes, x: str = "", y: str = "", grid: str = "both") -> Axes:
    """Give axes the common look."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")
    axes.tick_params(labelsize=9, colors=INK, length=3, width=0.8, color="#9aa5b1")
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    return axes


def whole_numbers(axes: Axes, most: int = 6) -> None:
    """Put the ticks of the x axis on whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def legend(axes: Axes, **options: Any) -> None:
    """Add a quiet legend."""
    look = {"fontsize": 8.5, "title_fontsize": 9, "frameon": False, "labelcolor": INK}
    axes.legend(**{**look, "alignment": "left", "borderaxespad": 0.3, **options})


def stamp(figure: Figure, text: str) -> None:
    """Write a warning below everything else, in a strip added to the figure."""
    if not text:
        return
    width, height = figure.get_size_inches()
    height += STRIP
    figure.set_size_inches(width, height)
    strip = STRIP / height
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, strip, 1, 1 - strip))
    figure.text(0.012, 0.07 / height, text, fontsize=8.5, color=WARNING, weight="bold", va="bottom")


def png(figure: Figure) -> bytes:
    """Draw a figure; the same figure gives the same bytes.

    A palette of 192 colours is plenty for lines and flat shades, and makes a third of the bytes.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    reduced = drawn.quantize(192, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(buffer, format="png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()
