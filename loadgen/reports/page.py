"""The report of a run, or of an experiment with several arms, as one HTML file.

It needs no network, no script and no other file, follows the reader's light or dark setting, and is read from top to
bottom: what the experiment found, headline figures, warnings, plots (each with its key numbers), marked moments, arms
compared, all latencies, and where it was measured. Every text is escaped by the template; plots are SVG made by
`loadgen.reports.svg`.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loadgen.reports.arms import Arm, load_arms
from loadgen.reports.plots import WIDTH, Plot, plots_of
from loadgen.reports.sections import Section
from loadgen.reports.svg import DARK, LIGHT, Palette, inline_svg
from loadgen.reports.tables import (
    Table,
    arm_table,
    arms_headline,
    comparison_table,
    comparisons,
    facts,
    headlines,
    latency_table,
    mark_table,
    phase_table,
)
from loadgen.results.columns import REPORT_FILE
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import write_atomically
from loadgen.results.summary import FELL_BEHIND

_MOST_ALIKE = 3  # runs of which the same warning is told one by one
_TEMPLATES = Environment(
    loader=PackageLoader("loadgen.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(folder: Path, sections: Sequence[Section] = ()) -> Path:
    """Write `summary.json` of every run in the folder, and `report.html` of the whole; returns the latter's path.

    Args:
        folder: A run's, or an experiment's.
        sections: What stands first.

    Raises:
        ResultsError: there is no run, one is damaged, or the folder cannot be written.
    """
    arms = load_arms(folder)
    try:
        for arm in arms:
            for run, summary in zip(arm.runs, arm.summaries, strict=True):
                summary.write(run.folder)
        path = folder / REPORT_FILE
        write_atomically(path, render(arms, sections))
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written: {error}") from error
    return path


def render(arms: Sequence[Arm], sections: Sequence[Section] = ()) -> str:
    """Return the page about these arms, at least one; `sections` stand first."""
    several = len(arms) > 1
    made, refused = comparisons(arms)
    started = arms[0].first.manifest.started_unix_ns // 1_000_000_000
    return _TEMPLATES.get_template("page.html.j2").render(
        title=arms[0].first.manifest.name if several else arms[0].first.manifest.title,
        started=dt.datetime.fromtimestamp(started, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seed=arms[0].first.manifest.seed,
        headlines=[] if several else headlines(arms[0].first),
        lead=arms_headline(arms),
        side_by_side=arm_table(arms),
        warnings=_warnings(arms),
        sections=[
            {"section": section, "plot": None if section.plot is None else _drawn(section.plot)} for section in sections
        ],
        plots=[_drawn(plot) for plot in plots_of(arms)],
        marks=_marks(arms),
        comparisons=[(comparison, comparison_table(comparison)) for comparison in made],
        refused=refused,
        details=[(arm.name if several else "", _details(arm)) for arm in arms],
        light=_style(LIGHT),
        dark=_style(DARK),
    )


def _drawn(plot: Plot) -> dict[str, object]:
    return {
        "plot": plot,
        # The SVG is matplotlib's, which escapes what it is given; the label is escaped with it.
        "svg": Markup(inline_svg(plot.draw, WIDTH, plot.height, prefix=plot.key, alt=plot.alt)),  # noqa: S704
        "table": Table("Key numbers", "", plot.columns, plot.rows),
    }


def _style(palette: Palette) -> str:
    return " ".join(f"{name}: {colour};" for name, colour in palette.variables().items())


def _details(arm: Arm) -> list[Table]:
    tables = (latency_table(arm.first), phase_table(arm.first), facts(arm.first))
    return [table for table in tables if table is not None]


def _marks(arms: Sequence[Arm]) -> list[Table]:
    tables = [table for arm in arms if (table := mark_table(arm, named=len(arms) > 1)) is not None]
    return [*(replace(table, note="") for table in tables[:-1]), *tables[-1:]]  # the same explanation once


def _warnings(arms: Sequence[Arm]) -> list[str]:
    found: list[str] = []
    summaries = [summary for arm in arms for summary in arm.summaries]
    behind = [summary for summary in summaries if summary.generator.fell_behind]
    together = len(behind) > _MOST_ALIKE
    if together:
        worst = max(d.p99 for s in behind for d in (s.generator.lag_ms, s.generator.late_ms) if d is not None)
        found.append(
            f"{FELL_BEHIND} in {len(behind)} of {len(summaries)} runs: its own lateness is up to {worst:.1f} ms (p99)"
        )
    for arm in arms:
        for n, summary in enumerate(arm.summaries, start=1):
            where = f"{arm.name}{f', repeat {n}' if len(arm.runs) > 1 else ''}: " if len(arms) > 1 else ""
            own = [w for w in summary.warnings if not (together and w.startswith(FELL_BEHIND))]
            found.extend(where + warning for warning in own)
    return found
