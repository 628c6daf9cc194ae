"""From an analysis as it is written in the file to its table."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from loadgen.experiments.analysis import growth, static_against_dynamic, ways_to_change
from loadgen.experiments.analysis.findings import Findings
from loadgen.experiments.analysis.kinds import Growth, StaticAgainstDynamic, WaysToChange
from loadgen.experiments.analysis.measured import measured_runs


def findings_of(analysis: StaticAgainstDynamic | WaysToChange | Growth, folder: Path, arms: Sequence[str]) -> Findings:
    """Compute the table of an experiment from the runs in its folder.

    Raises:
        MeasurementError: an arm has no finished run, or none has a change.
        ResultsError: a run is damaged.
    """
    runs = measured_runs(folder, arms)
    match analysis:
        case StaticAgainstDynamic():
            return static_against_dynamic.analyse(analysis, runs)
        case WaysToChange():
            return ways_to_change.analyse(analysis, runs)
        case Growth():
            return growth.analyse(analysis, runs)
        case _:
            assert_never(analysis)
