"""The tables of a report, as text: the same for the page and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadgen.reports.arms import Arm
from loadgen.reports.comparison import Comparison, Verdict, compare
from loadgen.reports.numbers import MISSING, count, milliseconds, number, percentile
from loadgen.results.errors import NotComparable
from loadgen.results.figures import Distribution, Figures
from loadgen.results.marked import MarkFigures
from loadgen.results.summary import RunSummary


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; the first column names the rows."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the figures that come first.

    Attributes:
        label: What it is.
        value: The figure.
        note: What it rests on.
    """

    label: str
    value: str
    note: str


def headlines(summary: RunSummary) -> list[Headline]:
    """Return the figures that a reader looks for first, each with what it rests on."""
    f = summary.figures
    ttft, gap, largest = f.ttft_ms, f.chunk_gap_ms, f.largest_gap_ms
    found = [
        Headline("largest gap", milliseconds(largest.max if largest else None), _of(largest, "p99", "streams")),
        Headline("TTFT, median", percentile(ttft, "p50"), _of(ttft, "p99", "requests")),
        Headline("gap, median", percentile(gap, "p50"), _of(gap, "p99", "gaps")),
        Headline("TPOT, median", percentile(f.tpot_ms, "p50"), _of(f.tpot_ms, "p99", "streams")),
        Headline("tokens/s", number(f.output_tokens_per_s), f"{count(f.output_tokens)} tokens in {number(f.span_s)} s"),
        Headline("requests", count(f.requests), _outcomes(f)),
    ]
    if f.goodput_per_s is not None:
        found.append(Headline("goodput", f"{number(f.goodput_per_s)}/s", f"{count(f.good)} met {_slo(summary)}"))
    return found


def _of(values: Distribution | None, name: str, what: str) -> str:
    if values is None:
        return "n = 0"
    return f"{name} {percentile(values, name)}, n = {count(values.n)} {what}"


def _outcomes(f: Figures) -> str:
    return ", ".join(f"{count(n)} {name.replace('_', ' ')}" for name, n in f.outcomes.items()) or "none ended"


def _slo(summary: RunSummary) -> str:
    slo = summary.manifest.slo
    parts = (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("E2E", slo.e2e_ms))
    return ", ".join(f"{name} ≤ {milliseconds(limit)}" for name, limit in parts if limit is not None)


def latency_table(summary: RunSummary) -> Table:
    """Return all latencies of one run."""
    f = summary.figures
    rows = []
    for label, values in (
        ("time to first token (TTFT)", f.ttft_ms),
        ("  counted from sending", f.ttft_from_sent_ms),
        ("time per output token (TPOT)", f.tpot_ms),
        ("gap between tokens (ITL)", f.itl_ms),
        ("gap between chunks", f.chunk_gap_ms),
        ("largest gap of a stream", f.largest_gap_ms),
        ("whole request (E2E)", f.e2e_ms),
        ("  counted from sending", f.e2e_from_sent_ms),
        ("largest gap of a broken stream", f.broken_largest_gap_ms),
    ):
        if values is not None:
            names = ("p50", "p90", "p95", "p99", "p99_9")
            shown = (milliseconds(values.mean), *(percentile(values, name) for name in names))
            rows.append((label, *shown, milliseconds(values.max), count(values.n)))
    return Table(
        title="Latencies",
        note="Counted from when a request was due, where the plan says so. ≈: so few values lie beyond this percentile "
        "that it is nearly the largest of them.",
        columns=("", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", "n"),
        rows=tuple(rows),
    )


def phase_table(summary: RunSummary) -> Table | None:
    """Return the figures of each phase of the workload; None without phases."""
    rows = tuple((name, *_row(figures)) for name, figures in summary.phases.items())
    note = "Requests belong to the phase in which they were due, wherever they ended."
    return Table("Phases of the workload", note, ("phase", *_ROW), rows) if rows else None


_ROW = (
    "requests",
    "broken",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "largest gap p50",
    "worst gap",
    "tokens/s",
    "goodput/s",
)


def _row(f: Figures) -> tuple[str, ...]:
    largest = f.largest_gap_ms
    return (
        count(f.requests),
        count(f.broken),
        percentile(f.ttft_ms, "p50"),
        percentile(f.ttft_ms, "p99"),
        percentile(f.tpot_ms, "p50"),
        percentile(largest, "p50"),
        milliseconds(largest.max if largest else None),
        number(f.output_tokens_per_s),
        number(f.goodput_per_s),
    )


def arm_table(arms: Sequence[Arm]) -> Table | None:
    """Return the arms side by side, a row for each repeat; None for one run."""
    rows = [
        (f"{arm.name}, repeat {n}" if len(arm.runs) > 1 else arm.name, *_row(summary.figures))
        for arm in arms
        for n, summary in enumerate(arm.summaries, start=1)
    ]
    return Table("Side by side", "", ("arm", *_ROW), tuple(rows)) if len(rows) > 1 else None


def arms_headline(arms: Sequence[Arm]) -> str:
    """Return what arms are compared by first, best first: requests within the service level, or the worst gap."""
    if len(arms) < 2:
        return ""
    shown: list[tuple[float, str]] = []
    if all(arm.first.figures.good is not None for arm in arms):
        for arm in arms:
            good = sum(summary.figures.good or 0 for summary in arm.summaries)
            asked = sum(summary.figures.requests for summary in arm.summaries)
            shown.append((-good / max(asked, 1), f"{arm.name} {count(good)} of {count(asked)}"))
        what = f"Requests within the service level ({_slo(arms[0].first)})"
    else:
        for arm in arms:
            gaps = [s.figures.largest_gap_ms.max for s in arm.summaries if s.figures.largest_gap_ms is not None]
            shown.append((max(gaps, default=float("inf")), f"{arm.name} {milliseconds(max(gaps, default=None))}"))
        what = "The worst gap between two tokens"
    return f"{what}: {', '.join(text for _, text in sorted(shown, key=lambda each: each[0]))}."


def mark_table(arm: Arm, *, named: bool) -> Table | None:
    """Return what each marked moment did to the streams; None without marks."""
    rows = tuple(
        (*((str(n),) if len(arm.summaries) > 1 else ()), *_mark_row(mark))
        for n, summary in enumerate(arm.summaries, start=1)
        for mark in summary.marks
    )
    if not rows:
        return None
    columns = ("mark", "at", "took", "streams", "pause p50", "worst pause", "usual p50", "silence", "n", "broke")
    return Table(
        title=f"Marked moments: {arm.name}" if named else "Marked moments",
        note="Pause: the largest gap that overlaps the mark, minus the median gap of the same stream before it; over n "
        "streams with enough before it. Usual: the same over as long a stretch before the mark. Silence: the longest "
        "time around the mark without a token for any of these streams.",
        columns=(*(("repeat",) if len(arm.summaries) > 1 else ()), *columns),
        rows=rows,
    )


def _mark_row(mark: MarkFigures) -> tuple[str, ...]:
    excess, usual = mark.excess_ms, mark.usual_excess_ms
    bound = "≥ " if mark.censored else ""
    return (
        mark.name if mark.kind in ("mark", mark.name) else f"{mark.name} ({mark.kind})",
        f"{number(mark.start_s)} s",
        milliseconds(mark.duration_ms) if mark.duration_ms else "instant",
        count(mark.streams),
        percentile(excess, "p50"),
        MISSING if excess is None else bound + milliseconds(excess.max),
        percentile(usual, "p50"),
        milliseconds(mark.silence_ms),
        count(excess.n if excess else 0),
        count(mark.broke),
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison, a row for each figure."""
    rows = []
    for figure in comparison.figures:
        unit = milliseconds if figure.unit == "ms" else lambda value: number(value) + ("" if value is None else "/s")
        interval = MISSING if figure.low is None else f"{number(figure.low)} to {number(figure.high)}"
        n = f"{count(figure.n_a)}, {count(figure.n_b)}"
        verdict = figure.verdict.value
        rows.append((figure.name, unit(figure.a), unit(figure.b), number(figure.ratio), interval, verdict, n))
    claims = sum(figure.verdict in (Verdict.BETTER, Verdict.WORSE) for figure in comparison.figures)
    return Table(
        title=f"{comparison.b} against {comparison.a}",
        note=f"A: {comparison.a} ({_runs(comparison.runs_a)}). B: {comparison.b} ({_runs(comparison.runs_b)}). "
        f"{claims} of {len(rows)} figures differ by more than noise; at 95 % one of twenty would by chance.",
        columns=("", "A", "B", "B / A", "95 % interval", "B is", "n"),
        rows=tuple(rows),
    )


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} repeats"


def comparisons(arms: Sequence[Arm]) -> tuple[list[Comparison], list[str]]:
    """Compare every arm with the first; returns the comparisons, and why others could not be made."""
    found, refused = [], []
    for first, other in ((arms[0], arm) for _, arm in pairwise(arms)):
        try:
            found.append(compare(first.runs, other.runs))
        except NotComparable as error:
            refused.append(str(error))
    return found, refused


def facts(summary: RunSummary) -> Table:
    """Return where and how the run was made."""
    manifest, generator = summary.manifest, summary.generator
    rows = [
        ("seed", str(manifest.seed)),
        *((f"machine: {key}", str(value)) for key, value in manifest.machine.items()),
        *((f"version: {key}", value) for key, value in manifest.versions.items()),
        *((f"target: {key}", str(value)) for key, value in manifest.target.items()),
        *((f"workload: {key}", str(value)) for key, value in manifest.workload.items()),
        *((f"of the workload: {key.replace('_', ' ')}", str(value)) for key, value in manifest.workload_notes.items()),
        ("generator: own lateness, p99", percentile(generator.lag_ms, "p99")),
        ("generator: requests sent late, p99", percentile(generator.late_ms, "p99")),
        ("generator: CPUs used", number(generator.cpu)),
        ("tokens in a chunk, mean", number(summary.figures.tokens_per_chunk)),
    ]
    return Table("Machine, versions, workload", "", ("", ""), tuple(rows))
