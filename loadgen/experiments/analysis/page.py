"""Findings as what stands first on the report's page, and that page of an experiment's folder."""

from pathlib import Path

from loadgen.experiments.analysis.drawings import drawing
from loadgen.experiments.analysis.findings import Findings
from loadgen.reports.page import write_report
from loadgen.reports.sections import Section
from loadgen.reports.tables import Table


def section_of(findings: Findings) -> Section:
    """Return findings as a section of a page."""
    columns = ("published by others", "figure", "source", "read from", "set-up")
    rows = tuple((p.what, p.value, p.source, p.read_from, p.setup) for p in findings.published)
    note = "As published; none of them was measured here. Read from: how far the source itself was read."
    others = (Table("Beside it: figures of others", note, columns, rows),) if rows else ()
    return Section(
        title=findings.title,
        headline=findings.headline,
        table=Table(findings.title, "", findings.columns, findings.rows),
        notes=findings.notes,
        plot=drawing(findings),
        further=others,
    )


def write_experiment_report(folder: Path) -> Path:
    """Write `report.html` of a run's or an experiment's folder, with the findings it has, first; return its path.

    Raises:
        ResultsError: there is no run, one is damaged, the findings are, or the folder cannot be written.
    """
    findings = Findings.read(folder)
    return write_report(folder, () if findings is None else (section_of(findings),))
