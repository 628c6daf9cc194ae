"""The report of a run, or of an experiment with several arms, as one HTML file.

It needs no network, no script and no other file, follows the reader's light or dark setting, and is read from top to
bottom: headline figures, warnings, plots (each with its key numbers), marked moments, arms compared, all latencies, and
where it was measured. Every text is escaped by the template; plots are SVG made by `loadgen.reports.svg`.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loadgen.reports.arms import Arm, load_arms
from loadgen.reports.plots import WIDTH, plots_of
from loadgen.reports.svg import DARK, LIGHT, Palette, inline_svg
from loadgen.reports.tables import (
    Table,
    arm_table,
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

_TEMPLATES = Environment(
    loader=PackageLoader("loadgen.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(folder: Path) -> Path:
    """Write `summary.json` of every run in the folder, and `report.html` of the whole; returns the latter's path.

    Args:
        folder: A run's, or an experiment's.

    Raises:
        ResultsError: there is no run, one is damaged, or the folder cannot be written.
    """
    arms = load_arms(folder)
    try:
        for arm in arms:
            for run, summary in zip(arm.runs, arm.summaries, strict=True):
                summary.write(run.folder)
        path = folder / REPORT_FILE
        write_atomically(path, render(arms))
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written: {error}") from error
    return path


def render(arms: Sequence[Arm]) -> str:
    """Return the page about these arms; at least one."""
    several = len(arms) > 1
    made, refused = comparisons(arms)
    plots = plots_of(arms)
    started = arms[0].first.manifest.started_unix_ns // 1_000_000_000
    return _TEMPLATES.get_template("page.html.j2").render(
        title=arms[0].first.manifest.name if several else arms[0].first.manifest.title,
        started=dt.datetime.fromtimestamp(started, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seed=arms[0].first.manifest.seed,
        headlines=[] if several else headlines(arms[0].first),
        side_by_side=arm_table(arms),
        warnings=_warnings(arms),
        plots=[
            {
                "plot": plot,
                # The SVG is matplotlib's, which escapes what it is given; the label is escaped with it.
                "svg": Markup(inline_svg(plot.draw, WIDTH, plot.height, prefix=plot.key, alt=plot.alt)),  # noqa: S704
                "table": Table("Key numbers", "", plot.columns, plot.rows),
            }
            for plot in plots
        ],
        marks=_marks(arms),
        comparisons=[(comparison, comparison_table(comparison)) for comparison in made],
        refused=refused,
        details=[(arm.name if several else "", _details(arm)) for arm in arms],
        light=_style(LIGHT),
        dark=_style(DARK),
    )


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
    for arm in arms:
        for n, summary in enumerate(arm.summaries, start=1):
            where = f"{arm.name}{f', repeat {n}' if len(arm.runs) > 1 else ''}: " if len(arms) > 1 else ""
            found.extend(where + warning for warning in summary.warnings)
    return found
