"""matplotlib's figures, made fit to stand inside a page or in a file of their own.

A page follows light and dark, so its plots are drawn with stand-in colours that occur nowhere else and become CSS
variables. matplotlib uses the same identifiers in every figure; in one page they must differ, so each gets a prefix.
Text stays text: it can be read aloud, found and copied.

Names from outside reach a plot as text. matplotlib escapes them for XML, and its formula language is switched off.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a plot, as matplotlib or a style sheet takes them."""

    ink: str
    muted: str
    grid: str
    mark: str
    series: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """Return the CSS variable of each colour."""
        named = {"--ink": self.ink, "--muted": self.muted, "--grid": self.grid, "--mark": self.mark}
        return named | {f"--series-{number}": colour for number, colour in enumerate(self.series, start=1)}


LIGHT = Palette(
    ink="#1c2126",
    muted="#5b6670",
    grid="#dde2e6",
    mark="#b4540a",
    series=("#1f5fb4", "#b3261e", "#2a7d3f", "#7a3fa8", "#8a6a00", "#0b7a80"),
)
DARK = Palette(
    ink="#e6e9ec",
    muted="#9aa5af",
    grid="#363d44",
    mark="#ffa657",
    series=("#79b0ff", "#ff8e86", "#7fd191", "#cfa3f5", "#e3c04f", "#63cfd4"),
)
_STAND_IN = Palette(
    ink="#010101",
    muted="#020202",
    grid="#030303",
    mark="#040404",
    series=("#050101", "#050202", "#050303", "#050404", "#050505", "#050606"),
)

Draw = Callable[[Figure, Palette], None]


def inline_svg(draw: Draw, width: float, height: float, *, prefix: str, alt: str) -> str:
    """Draw a figure for a page.

    Args:
        draw: Draws into an empty figure.
        width, height: In inches; the page scales it.
        prefix: Put before every identifier; different for each figure of a page.
        alt: What the figure shows, in words; read aloud instead of it.
    """
    svg = _svg(draw, width, height, _STAND_IN, "none")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    for variable, colour in _STAND_IN.variables().items():
        svg = svg.replace(colour, f"var({variable})")
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{body}'


def export(draw: Draw, width: float, height: float, path: Path) -> None:
    """Draw a figure into an `.svg` or `.png` file, in the light colours on white.

    Raises:
        ValueError: the file's name ends otherwise.
    """
    if path.suffix == ".svg":
        path.write_text(_svg(draw, width, height, LIGHT, "white"), encoding="utf-8")
    elif path.suffix == ".png":
        with mpl.rc_context(_style(LIGHT)):
            figure = _figure(draw, width, height, LIGHT)
            figure.savefig(path, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    else:
        raise ValueError(f"{path}: a plot can be written as .svg or .png")


def _svg(draw: Draw, width: float, height: float, palette: Palette, background: str) -> str:
    with mpl.rc_context(_style(palette)):
        figure = _figure(draw, width, height, palette)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor=background)
        return out.getvalue()


def _figure(draw: Draw, width: float, height: float, palette: Palette) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, palette)
    return figure


def _style(palette: Palette) -> Any:  # matplotlib's type of it names every key there is
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "midstream",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        "font.size": 8.5,
        "text.color": palette.ink,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.grid,
        "axes.titlecolor": palette.ink,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "figure.facecolor": "none",
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
    }
