"""The plots of a report: what is drawn, what it shows in words, and its key numbers as a table.

Each plot is made of arms (one, or several side by side) and is None where there is nothing to draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadgen.reports.arms import Arm
from loadgen.reports.numbers import count, milliseconds, number, percentile
from loadgen.reports.series import bin_means, bin_width_s, cdf_points, largest_points, rate_series
from loadgen.reports.svg import Draw, Palette, export
from loadgen.results.columns import STAGE_SAMPLE_PREFIX, MarkRow
from loadgen.results.figures import largest_gap_ms
from loadgen.results.streams import NONE, Streams
from loadgen.results.summary import sampled

WIDTH = 9.0
_MOST_ARMS = 6
_MOST_LABELS, _MOST_MARKS, _LABEL_LENGTH = 12, 200, 22
_WIDE = 300.0  # largest over smallest value of an axis
_LABEL_LINES, _LETTER_SHARE = 3, 0.0075


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a report.

    Attributes:
        key: Short name, for `--plot` and identifiers.
        title: What it shows.
        caption: How to read it, and what was left out.
        alt: The same in words, for who cannot see it.
        draw: Draws it.
        height: In inches.
        columns, rows: Its key numbers.
    """

    key: str
    title: str
    caption: str
    alt: str
    draw: Draw
    height: float
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plots_of(arms: Sequence[Arm]) -> list[Plot]:
    """Return every plot that there is something to draw for, in the order of a page."""
    made = [plot for maker in PLOTS.values() if (plot := maker(arms[:_MOST_ARMS])) is not None]
    if len(arms) <= _MOST_ARMS:
        return made
    note = f" Of {len(arms)} arms the first {_MOST_ARMS} are drawn."
    return [replace(plot, caption=plot.caption + note) for plot in made]


def export_plot(arms: Sequence[Arm], path: Path, key: str = "timeline") -> None:
    """Write one plot to an `.svg` or `.png` file.

    Raises:
        ValueError: there is no such plot, nothing to draw in it, or no such kind of file.
    """
    if key not in PLOTS:
        raise ValueError(f"there is no plot {key!r}: give one of {', '.join(PLOTS)}")
    plot = PLOTS[key](arms)
    if plot is None:
        raise ValueError(f"there is nothing to draw for plot {key!r} in this run")
    export(plot.draw, WIDTH, plot.height, path)


def timeline(arms: Sequence[Arm]) -> Plot | None:
    """Requests due and tokens received per second, with marks."""
    shown = [(arm, arm.streams[0], span) for arm in arms if (span := _span_s(arm.streams[0])) is not None]
    if not shown:
        return None
    width = bin_width_s(max(end - start for _, _, (start, end) in shown))
    arrivals, tokens = [], []
    for _, streams, (start, end) in shown:
        due = streams.origin_ns[streams.known]
        arrivals.append(rate_series(due, start, end, width))
        tokens.append(rate_series(streams.at_ns, start, end, width))

    def draw(figure: Figure, palette: Palette) -> None:
        rows = figure.subplots(2 * len(shown), 1, sharex=True, squeeze=False, height_ratios=[1, 2] * len(shown))[:, 0]
        for number_, (arm, _, _) in enumerate(shown):
            colour = palette.series[number_ % len(palette.series)]
            upper, lower = rows[2 * number_], rows[2 * number_ + 1]
            upper.stairs(arrivals[number_].rates, arrivals[number_].edges_s, color=palette.muted, fill=True, alpha=0.55)
            lower.stairs(tokens[number_].rates, tokens[number_].edges_s, color=colour, linewidth=1.4)
            upper.set_ylabel("requests/s")
            lower.set_ylabel("tokens/s")
            lower.set_ylim(bottom=0)
            if len(shown) > 1:
                upper.set_title(arm.name)
            _draw_marks(upper, arm.marks, palette, labels=True)
            _draw_marks(lower, arm.marks, palette)
        rows[-1].set_xlabel("seconds since the start of the run")

    key_numbers = tuple(
        (
            arm.name,
            number(arm.first.figures.output_tokens_per_s),
            number(float(series.rates.max())),
            number(float(series.rates.min())),
            count(arm.first.figures.output_tokens),
        )
        for (arm, _, _), series in zip(shown, tokens, strict=True)
    )
    repeats = " The first repeat of each arm is drawn." if any(len(arm.runs) > 1 for arm in arms) else ""
    return Plot(
        key="timeline",
        title="Arrivals and tokens over time",
        caption=f"Requests due and tokens received per second, in bins of {width:g} s; marks in orange.{repeats}",
        alt="Two stepped lines over time: requests per second above, tokens per second below. "
        + " ".join(f"{row[0]}: {row[1]} tokens/s on average, between {row[3]} and {row[2]}." for row in key_numbers),
        draw=draw,
        height=1.2 + 2.0 * len(shown),
        columns=("arm", "tokens/s", "highest bin", "lowest bin", "tokens"),
        rows=key_numbers,
    )


def latencies(arms: Sequence[Arm]) -> Plot | None:
    """CDFs of TTFT and of the gaps between chunks."""
    panels = [
        ("time to first token", [(arm.name, arm.ttft_ms()) for arm in arms]),
        ("gap between chunks of tokens", [(arm.name, arm.chunk_gaps_ms()) for arm in arms]),
    ]
    if not any(len(values) for _, lines in panels for _, values in lines):
        return None
    curves = [
        (title, [(name, cdf_points(np.maximum(values, 1e-3))) for name, values in lines if len(values)])
        for title, lines in panels
    ]

    def draw(figure: Figure, palette: Palette) -> None:
        for axes, (title, lines) in zip(figure.subplots(1, 2, sharey=True), curves, strict=True):
            styles = zip(cycle(palette.series), cycle(("-", "--", "-.", ":")))
            for (name, (x, y)), (colour, dashes) in zip(lines, styles, strict=False):
                axes.step(x, y, where="post", color=colour, linestyle=dashes, label=name)
            axes.set_title(title)
            _log_ms(axes)
            axes.set_ylim(0, 1.02)
        left = figure.axes[0]
        left.set_ylabel("share of all")
        if len(arms) > 1:
            left.legend(loc="lower right")

    rows = []
    for arm in arms:
        for label, values in (("TTFT", arm.first.figures.ttft_ms), ("gap", arm.first.figures.chunk_gap_ms)):
            figures = (percentile(values, name) for name in ("p50", "p90", "p99", "max"))
            rows.append((f"{arm.name}: {label}", *figures, count(values.n if values else 0)))
    return Plot(
        key="latencies",
        title="How long users wait",
        caption="Share of requests that had their first token, and of gaps that had ended, within a time "
        "(logarithmic). Gaps inside a chunk are left out.",
        alt="Two cumulative curves. " + " ".join(f"{r[0]}: median {r[1]}, p99 {r[3]}, worst {r[4]}." for r in rows),
        draw=draw,
        height=2.9,
        columns=("of", "p50", "p90", "p99", "max", "n"),
        rows=tuple(rows),
    )


def gap_histogram(arms: Sequence[Arm]) -> Plot | None:
    """Histogram of the gaps between chunks on logarithmic axes."""
    histograms = [(arm, arm.first.gaps) for arm in arms if sum(arm.first.gaps.counts)]
    if not histograms:
        return None
    used = np.flatnonzero(np.sum([histogram.counts for _, histogram in histograms], axis=0))
    low, high = int(used[0]), int(used[-1]) + 1

    def draw(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        for (arm, histogram), colour in zip(histograms, cycle(palette.series), strict=False):
            edges = histogram.edges_ms[low : high + 1]
            axes.stairs(histogram.counts[low:high], edges, color=colour, label=arm.name, linewidth=1.4, baseline=0.5)
            if len(histograms) == 1:
                axes.stairs(histogram.counts[low:high], edges, color=colour, fill=True, alpha=0.25, baseline=0.5)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
        axes.set_ylabel("gaps")
        _log_ms(axes)
        if len(histograms) > 1:
            axes.legend(loc="upper right")

    rows = []
    for arm, histogram in histograms:
        edges, counts = np.array(histogram.edges_ms), np.array([*histogram.counts, histogram.above])
        beyond = [int(counts[np.flatnonzero(edges >= limit * (1 - 1e-9))].sum()) for limit in (100, 1_000, 10_000)]
        rows.append(
            (arm.name, count(int(counts.sum()) + histogram.below), *map(count, beyond), count(histogram.in_chunk))
        )
    return Plot(
        key="gaps",
        title="Gaps between tokens",
        caption="How many gaps are how long; both axes are logarithmic, so that one long gap among a million is seen. "
        "Gaps within a chunk are counted in the table only.",
        alt="A histogram of gaps. " + " ".join(f"{r[0]}: {r[1]} gaps, {r[2]} of 100 ms or more." for r in rows),
        draw=draw,
        height=2.5,
        columns=("arm", "gaps", "100 ms or more", "1 s or more", "10 s or more", "within chunks"),
        rows=tuple(rows),
    )


def largest_gaps(arms: Sequence[Arm]) -> Plot | None:
    """The largest gap of each stream over time, with marks."""
    shown = []
    for arm in arms:
        streams = arm.streams[0]
        values = largest_gap_ms(streams)
        there = ~np.isnan(values)
        if there.any():
            at_s, values = streams.largest_gap_at_ns[there] / 1e9, np.maximum(values[there], 1e-3)
            shown.append((arm, at_s, values, largest_points(at_s, values)))
    if not shown:
        return None

    def draw(figure: Figure, palette: Palette) -> None:
        rows = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (arm, at_s, values, kept), colour in zip(rows, shown, cycle(palette.series), strict=False):
            axes.scatter(at_s[kept], values[kept], s=7, color=colour, alpha=0.55, linewidths=0)
            axes.set_yscale("log")
            axes.set_ylim(top=2 * max(float(values.max()) for _, _, values, _ in shown))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(_tick_ms))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel("largest gap")
            if len(shown) > 1:
                axes.set_title(arm.name)
            _draw_marks(axes, arm.marks, palette, labels=True)
        rows[-1].set_xlabel("where the gap began, in seconds since the start of the run")

    left_out = [
        f"of {count(len(values))} streams{f' of {arm.name}' if len(shown) > 1 else ''} {count(len(kept))} are drawn, "
        "the largest of every stretch of time among them"
        for arm, _, values, kept in shown
        if len(kept) < len(values)
    ]
    rows = []
    for arm, at_s, values, _ in shown:
        worst = int(values.argmax())
        quantiles = np.percentile(values, [50, 90, 99]).tolist()
        rows.append(
            (arm.name, *map(milliseconds, quantiles), milliseconds(float(values[worst])), f"{number(at_s[worst])} s")
        )
    return Plot(
        key="largest",
        title="The largest gap of each stream",
        caption="A point is a stream: where its longest wait between two tokens began, and how long it was"
        + ("; " + "; ".join(left_out) if left_out else "")
        + ".",
        alt="Points over time, one for each stream. " + " ".join(f"{r[0]}: worst {r[4]} at {r[5]}." for r in rows),
        draw=draw,
        height=0.7 + 1.9 * len(shown),
        columns=("arm", "p50", "p90", "p99", "worst", "worst began at"),
        rows=tuple(rows),
    )


def stages(arms: Sequence[Arm]) -> Plot | None:
    """Utilisation of each stage over time."""
    lines: list[tuple[Arm, list[tuple[str, np.ndarray, np.ndarray]]]] = []
    for arm in arms:
        run = arm.runs[0]
        names = sorted({n for n in run.samples.column("name").to_pylist() if n.startswith(STAGE_SAMPLE_PREFIX)})
        series = [(name, *sampled(run, name)) for name in names if name.endswith(".busy")]
        if series:
            lines.append((arm, series))
    if not lines:
        return None

    def draw(figure: Figure, palette: Palette) -> None:
        rows = figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (arm, series) in zip(rows, lines, strict=True):
            width = bin_width_s(max(float(at_s[-1] - at_s[0]) for _, at_s, _ in series))
            for (name, at_s, values), colour in zip(series, cycle(palette.series), strict=False):
                axes.plot(*bin_means(at_s, values, width), color=colour, label=_stage_name(name))
            axes.set_ylim(0, 1.05)
            axes.set_ylabel("share of time busy")
            axes.legend(loc="upper left", ncols=6)
            if len(lines) > 1:
                axes.set_title(arm.name)
            _draw_marks(axes, arm.marks, palette)
        rows[-1].set_xlabel("seconds since the start of the run")

    rows = tuple(
        (f"{arm.name}: {_stage_name(name)}", number(float(values.mean())), number(float(values.max())))
        for arm, series in lines
        for name, _, values in series
    )
    return Plot(
        key="stages",
        title="How busy each stage is",
        caption="Share of the time in which a stage computed, averaged over short stretches.",
        alt="Lines over time. " + " ".join(f"{name} busy {mean} on average." for name, mean, _ in rows),
        draw=draw,
        height=0.7 + 1.7 * len(lines),
        columns=("stage", "mean", "max"),
        rows=rows,
    )


PLOTS: dict[str, Callable[[Sequence[Arm]], Plot | None]] = {
    "timeline": timeline,
    "latencies": latencies,
    "gaps": gap_histogram,
    "largest": largest_gaps,
    "stages": stages,
}


def _stage_name(sample: str) -> str:
    return sample.removesuffix(".busy").replace(".", " ")


def _span_s(streams: Streams) -> tuple[float, float] | None:
    span = streams.span_ns
    return None if span is None or NONE in span else (span[0] / 1e9, span[1] / 1e9)


def _draw_marks(axes: Axes, marks: Sequence[MarkRow], palette: Palette, *, labels: bool = False) -> None:
    for mark in marks[:_MOST_MARKS]:
        axes.axvline(mark.start_ns / 1e9, color=palette.mark, linewidth=0.9)
        if mark.end_ns > mark.start_ns:
            axes.axvspan(mark.start_ns / 1e9, mark.end_ns / 1e9, color=palette.mark, alpha=0.18, linewidth=0)
    if labels and len(marks) <= _MOST_LABELS:
        left, right = axes.get_xlim()
        ends = [0.0] * _LABEL_LINES  # where the last label of each line ends, as a share of the width
        for mark in marks:
            name = mark.name if len(mark.name) <= _LABEL_LENGTH else f"{mark.name[: _LABEL_LENGTH - 1]}…"
            at = (mark.start_ns / 1e9 - left) / max(right - left, 1e-9)
            line = next((n for n, end in enumerate(ends) if end <= at), None)
            if line is None:
                continue  # its line is there, and its name in the table
            ends[line] = at + _LETTER_SHARE * (len(name) + 1)
            axes.annotate(
                name,
                (mark.start_ns / 1e9, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -1 - 8 * line),
                textcoords="offset points",
                va="top",
                color=palette.mark,
                fontsize=7.5,
                annotation_clip=True,
            )


def _log_ms(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Labels at 1, 2 and 5 of three decades and more would lie upon each other.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / max(low, 1e-9) < _WIDE else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick_ms))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tick_ms(value: float, _position: int) -> str:
    return f"{value / 1e3:g} s" if value >= 1_000 else f"{value:g} ms"
