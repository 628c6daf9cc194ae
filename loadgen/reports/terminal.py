"""Runs and comparisons in a terminal: the same headline, marks and warnings as on the page.

Everything from outside (names, details, errors) is printed as plain text: rich's markup is not applied to it, and
control characters, which could rewrite what stands on the screen, are replaced.
"""

import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from loadgen.reports.arms import Arm
from loadgen.reports.comparison import Comparison, Verdict
from loadgen.reports.numbers import count, milliseconds, number
from loadgen.reports.sections import Section
from loadgen.reports.series import rate_series
from loadgen.reports.tables import Table, arm_table, comparison_table, headlines, latency_table, mark_table, phase_table
from loadgen.results.streams import Streams
from loadgen.results.summary import RunSummary

_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARKS, _BAR_LENGTH = 72, 40
_VERDICTS = {Verdict.BETTER.value: "green", Verdict.WORSE.value: "red"}


def show(arms: Sequence[Arm], console: Console | None = None) -> None:
    """Print a run, or several arms side by side."""
    console = Console() if console is None else console
    several = len(arms) > 1
    parts: list[RenderableType] = []
    if (side_by_side := arm_table(arms)) is not None:
        parts.append(_rich(side_by_side))
    for arm in arms:
        parts.append(_text(arm.name if several else arm.first.manifest.title, "bold"))
        if not several:
            parts.append(_headlines(arm.first))
        parts.append(_tokens_over_time(arm.streams[0]))
        parts.extend(_warning(warning) for warning in arm.first.warnings)
        if not several:
            parts.append(_histogram(arm.first))
            parts.extend(_rich(t) for t in (latency_table(arm.first), phase_table(arm.first)) if t is not None)
        if (marks := mark_table(arm, named=several)) is not None:
            parts.append(_rich(marks))
    console.print(Group(*parts))


def show_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison."""
    console = Console() if console is None else console
    console.print(Group(_rich(comparison_table(comparison)), *(_warning(text) for text in comparison.warnings)))


def show_section(section: Section, console: Console | None = None) -> None:
    """Print what an experiment found."""
    console = Console() if console is None else console
    notes = (_text(f"- {note}", "dim") for note in section.notes)
    parts = (_text(section.headline, "bold"), _rich(section.table), *notes, *map(_words, section.further))
    console.print(Group(*parts))


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each value, from zero to the largest; only zero has no height at all."""
    top = max(values, default=0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(" " if value <= 0 else _BARS[min(7, int(value / top * 8))] for value in values)


def plain(text: str) -> str:
    """Return the text with every control character replaced, those that turn the direction of writing among them."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)


def _text(text: str, style: str = "") -> Text:
    return Text(plain(text), style=style)


def _warning(text: str) -> Text:
    return _text(f"! {text}", "yellow")


def _headlines(summary: RunSummary) -> RenderableType:
    table = RichTable(box=None, show_header=False, pad_edge=False)
    for headline in headlines(summary):
        table.add_row(_text(headline.label, "dim"), _text(headline.value, "bold"), _text(headline.note, "dim"))
    return table


def _tokens_over_time(streams: Streams) -> Text:
    span = streams.span_ns
    if span is None:
        return _text("no tokens", "dim")
    start, end = span[0] / 1e9, span[1] / 1e9
    series = rate_series(streams.at_ns, start, end, max(end - start, 1e-3) / _SPARKS)
    text = Text(sparkline(series.rates.tolist()), style="cyan")
    highest = number(float(series.rates.max()))
    return text.append(f"\n{number(start)} s to {number(end)} s, up to {highest} tokens/s", "dim")


def _histogram(summary: RunSummary) -> RenderableType:
    counts = np.array(summary.gaps.counts)
    if not counts.any():
        return _text("no gaps between tokens", "dim")
    used = np.flatnonzero(counts)
    table = RichTable(box=None, show_header=False, pad_edge=False)
    heights = np.log10(counts + 1) / np.log10(counts.max() + 1)  # one gap among a million must be seen
    for n in range(int(used[0]), int(used[-1]) + 1):
        label = f"gaps from {milliseconds(summary.gaps.edges_ms[n])}"
        bar = "█" * max(int(counts[n] > 0), round(float(heights[n]) * _BAR_LENGTH))
        table.add_row(_text(label, "dim"), Text(bar, style="cyan"), _text(count(int(counts[n])), "dim"))
    return table


def _words(of: Table) -> RenderableType:
    """Return a table of words, whose columns may all be folded."""
    table = RichTable(title=_text(of.title, "bold"), title_justify="left", caption_justify="left", box=None)
    table.caption = _text(of.note, "dim") if of.note else None
    for column in of.columns:
        table.add_column(_text(column), overflow="fold")
    for row in of.rows:
        table.add_row(*map(_text, row))
    return table


def _rich(of: Table) -> RenderableType:
    table = RichTable(title=_text(of.title, "bold"), title_justify="left", caption_justify="left", box=None)
    table.caption = _text(of.note, "dim") if of.note else None
    for n, column in enumerate(of.columns):
        table.add_column(_text(column), justify="left" if n == 0 else "right", no_wrap=n == 0, overflow="fold")
    for row in of.rows:
        table.add_row(*(_text(cell, _VERDICTS.get(cell, "")) for cell in row))
    return table
