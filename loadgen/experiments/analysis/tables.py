"""From an analysis as it is written in the file to its table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from loadgen.experiments.analysis import growth, static_against_dynamic, ways_to_change
from loadgen.experiments.analysis.findings import Findings
from loadgen.experiments.analysis.kinds import Growth, StaticAgainstDynamic, WaysToChange
from loadgen.experiments.analysis.measured import Measured, measured_runs
from loadgen.results.summary import LATE_MS, generator_figures


def findings_of(analysis: StaticAgainstDynamic | WaysToChange | Growth, folder: Path, arms: Sequence[str]) -> Findings:
    """Compute the table of an experiment from the runs in its folder.

    Raises:
        MeasurementError: an arm has no finished run, or none has a change.
        ResultsError: a run is damaged.
    """
    runs = measured_runs(folder, arms)
    found = _analysed(analysis, runs)
    behind = [f"{run.arm} {run.repeat + 1}" for run in runs if generator_figures(run.run, run.streams).fell_behind]
    if not behind:
        return found
    which = "all of them" if len(behind) == len(runs) else ", ".join(behind)
    late = (
        f"The generator fell behind in {len(behind)} of {len(runs)} runs ({which}): differences of less than "
        f"{LATE_MS:g} ms or so may be its own."
    )
    return replace(found, notes=(late, *found.notes))


def _analysed(analysis: StaticAgainstDynamic | WaysToChange | Growth, runs: Sequence[Measured]) -> Findings:
    match analysis:
        case StaticAgainstDynamic():
            return static_against_dynamic.analyse(analysis, runs)
        case WaysToChange():
            return ways_to_change.analyse(analysis, runs)
        case Growth():
            return growth.analyse(analysis, runs)
        case _:
            assert_never(analysis)
