"""The drawings of findings, from `findings.json` alone: so that they can be made again without the runs.

- growth: pause and whole change over the KV that a change found, with the fitted line and its confidence band;
- ways to change: a line for each way, on a logarithmic axis, from noise to silence;
- static against dynamic: tokens per second around the change, arm by arm.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadgen.experiments.analysis.findings import Findings, ms
from loadgen.experiments.analysis.growth import CONFIDENCE, Line, group_name
from loadgen.reports.numbers import count, number
from loadgen.reports.plots import Plot
from loadgen.reports.svg import Palette

_MARKERS = "osD^vP"
_BAND_POINTS = 60


def drawing(findings: Findings) -> Plot | None:
    """Return the drawing of findings; None where there is nothing to draw."""
    return _DRAWINGS[findings.kind](findings.figures) if findings.kind in _DRAWINGS else None


def _growth(figures: dict[str, Any]) -> Plot | None:
    groups = {group_name(name): group for name, group in figures["groups"].items()}
    panels = (("pause_ms", "pause of the worst stream"), ("total_ms", "whole change"))

    def draw(figure: Figure, palette: Palette) -> None:
        for axes, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
            for (group, found), colour, marker in zip(
                groups.items(), cycle(palette.series), cycle(_MARKERS), strict=False
            ):
                there = [(p["kv_tokens"], p[name]) for p in found["points"] if p[name] is not None]
                axes.scatter(
                    [x for x, _ in there], [y for _, y in there], s=22, color=colour, marker=marker, label=group
                )
                _line(axes, found["lines"][name], [x for x, _ in there], colour)
            axes.set_title(title)
            axes.set_xlabel("KV that the change found, in tokens (context x streams)")
            axes.set_ylabel("ms")
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.05 * axes.get_ylim()[1])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
        if len(groups) > 1:
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups))

    rows = tuple(
        (
            f"{group}: {p['arm']}",
            count(p["kv_tokens"]),
            str(p["streams"]),
            ms(p["pause_ms"]),
            ms(p["total_ms"]),
        )
        for group, found in groups.items()
        for p in found["points"]
    )
    return Plot(
        key="growth",
        title="Pause and whole change over the KV",
        caption="A point is a run. Line: least squares; band: holds the true line, if it is a line, with "
        f"{CONFIDENCE:.0%} confidence.",
        alt="Two panels of points with a line through each group. "
        + " ".join(f"{row[0]}: {row[1]} tokens, pause {row[3]}, whole change {row[4]}." for row in rows),
        draw=draw,
        height=3.3,
        columns=("run", "tokens of KV", "streams", "pause", "whole change"),
        rows=rows,
    )


def _line(axes: Axes, found: dict[str, Any] | None, x: list[int], colour: str) -> None:
    if found is None:
        return
    line, at = Line(**found), np.linspace(min(x), max(x), _BAND_POINTS)
    y, low, high = zip(*(line.at(float(each)) for each in at), strict=True)
    axes.plot(at, y, color=colour)
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


_SHOWN = (
    ("noise_ms", "noise: the same where nothing happens", "|"),
    ("pause_ms", "pause of the worst stream", "o"),
    ("silence_ms", "no token for anyone", "s"),
    ("change_ms", "whole change", "D"),
)


def _ways(figures: dict[str, Any]) -> Plot | None:
    # A way that breaks its streams has no pause that could be set beside the others'.
    ways = {
        way: {name: f[name] for name, _, _ in _SHOWN if f[name] and not (name == "pause_ms" and f["broken"])}
        for way, f in figures["ways"].items()
    }
    if not any(ways.values()):
        return None

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        places = range(len(ways))
        colours = (palette.muted, palette.series[0], palette.series[1], palette.series[2])
        for (name, label, marker), colour in zip(_SHOWN, colours, strict=True):
            there = [(f[name], place) for place, f in zip(places, ways.values(), strict=True) if name in f]
            if there:
                axes.scatter(
                    [x for x, _ in there],
                    [y for _, y in there],
                    s=42,
                    marker=marker,
                    color=colour,
                    label=label,
                    zorder=3,
                )
        for place, f in zip(places, ways.values(), strict=True):
            if f:
                axes.plot((min(f.values()), max(f.values())), (place, place), color=palette.grid, zorder=1)
        axes.set_yticks(list(places), list(ways))
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms")
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside lower center", ncols=4)

    rows = tuple((way, *(ms(f.get(name)) for name, _, _ in _SHOWN)) for way, f in ways.items())
    return Plot(
        key="ways",
        title="What each way costs",
        caption="Logarithmic. A way that breaks its streams has no pause; what it costs is the time without any token.",
        alt="A line for each way. "
        + " ".join(f"{r[0]}: pause {r[2]}, no token for {r[3]}, whole change {r[4]}." for r in rows),
        draw=draw,
        height=1.1 + 0.34 * len(ways),
        columns=("way", "noise", "pause", "no token for anyone", "whole change"),
        rows=rows,
    )


def _around(figures: dict[str, Any]) -> Plot | None:
    arms = figures["over_time"]
    if not arms:
        return None

    def draw(figure: Figure, palette: Palette) -> None:
        rows = figure.subplots(len(arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (arm, found), colour in zip(rows, arms.items(), cycle(palette.series), strict=False):
            axes.stairs(found["tokens_per_s"], found["edges_s"], color=colour, fill=True, alpha=0.3)
            axes.stairs(found["tokens_per_s"], found["edges_s"], color=colour, linewidth=1.1)
            if found["change_s"] is not None:
                axes.axvline(0, color=palette.mark, linewidth=0.9)
                axes.axvspan(0, found["change_s"], color=palette.mark, alpha=0.18, linewidth=0)
            axes.set_title(arm)
            axes.set_ylim(bottom=0)
        rows[len(rows) // 2].set_ylabel("tokens/s")
        rows[-1].set_xlabel("seconds since the change began")

    rows = tuple(
        (
            arm,
            number(float(np.mean(found["tokens_per_s"]))),
            "none" if found["change_s"] is None else f"{number(found['change_s'])} s",
            f"{number(_longest_zero_s(found))} s",
        )
        for arm, found in arms.items()
    )
    return Plot(
        key="around",
        title="Tokens per second around the change",
        caption="The first run of each arm; the change is shaded. A static arm is shown around the moment at which the "
        "dynamic one changed.",
        alt="Stepped areas over time, one for each arm. "
        + " ".join(f"{r[0]}: {r[1]} tokens/s on average, longest stretch of empty bins {r[3]}." for r in rows),
        draw=draw,
        height=0.7 + 1.05 * len(arms),
        columns=("arm", "tokens/s shown", "change took", "longest stretch of empty bins"),
        rows=rows,
    )


def _longest_zero_s(found: dict[str, Any]) -> float:
    longest = run = 0.0
    widths = np.diff(found["edges_s"])
    for rate, width in zip(found["tokens_per_s"], widths, strict=True):
        run = 0.0 if rate else run + float(width)
        longest = max(longest, run)
    return longest


_DRAWINGS: dict[str, Callable[[dict[str, Any]], Plot | None]] = {
    "growth": _growth,
    "ways_to_change": _ways,
    "static_against_dynamic": _around,
}
