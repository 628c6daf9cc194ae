"""One row for each way to change a pipeline: what streams saw of it, how long it took, what it moved.

The pause is the house definition (`loadgen.gaps`). A way that breaks its streams has none; the time without any token
stands beside it for every way. Figures are medians over repeats, pauses the worst of all.
"""

from collections.abc import Sequence
from statistics import median as middle

from loadgen.experiments.analysis.findings import Findings, ms, published, ratio, size, times
from loadgen.experiments.analysis.kinds import WaysToChange
from loadgen.experiments.analysis.measured import (
    Measured,
    broken_counts,
    detail,
    median,
    silence_ms,
    steady,
    token_times_ms,
    worst,
)
from loadgen.gaps import Window
from loadgen.results.columns import MarkRow

_WORST = {"pause_ms", "cutover_pause_ms", "noise_ms", "broken", "unanswered"}

Figures = dict[str, float | None]


def analyse(analysis: WaysToChange, runs: Sequence[Measured]) -> Findings:
    """Return the table."""
    quiet = [run for run in runs if run.arm == analysis.quiet]
    each: dict[str, list[Figures]] = {}
    for run in runs:
        if run.change is not None:
            each.setdefault(run.arm, []).append(run_figures(run, run.change, quiet))
    combined = {arm: _combined(figures) for arm, figures in each.items()}
    rows = tuple(
        (
            arm,
            ms(f["pause_ms"]),
            ms(f["cutover_pause_ms"]),
            ms(f["silence_ms"]),
            ms(f["noise_ms"]),
            ms(f["change_ms"]),
            size(f["bytes_moved"]),
            "-" if f["rounds"] is None else f"{f['rounds']:.0f}",
            times(f["tpot_ratio"]),
            f"{f['broken'] or 0:.0f}",
            f"{f['unanswered'] or 0:.0f}",
        )
        for arm, f in combined.items()
    )
    links = {str((run.run.manifest.target.get("link") or {}).get("kind")) for run in runs} - {"None"}
    notes = [
        (
            f"{max(map(len, each.values()), default=0)} run(s) of each way; pauses are the worst of all streams and "
            "runs, the rest medians over runs."
        ),
        "Noise: the same definition of a pause, over a window of the same length and place in which nothing happened.",
        "Stop-and-restart breaks its streams; the time without any token is its downtime.",
        (
            f"Between nodes: {', '.join(sorted(links)) or 'no arm has two nodes'}. Both nodes, head and clients "
            f"share {runs[0].run.manifest.machine.get('cpus')} CPU cores: copying takes processor time from decoding."
        ),
    ]
    for run in runs:
        why = (run.run.manifest.target.get("link") or {}).get("why_not")
        if why is not None and (note := f"The link that was asked for could not be made: {why}") not in notes:
            notes.append(note)
    return Findings(
        kind=analysis.kind,
        title="Ways to change a pipeline",
        headline=_headline(combined),
        columns=(
            "way",
            "pause, worst stream",
            "at the cutover",
            "no token at all for",
            "noise",
            "whole change",
            "KV moved",
            "rounds",
            "time per token meanwhile",
            "streams broken",
            "requests without a server",
        ),
        rows=rows,
        figures={"ways": combined, "runs": each},
        notes=tuple(notes),
        published=published(analysis.kind),
    )


def _headline(ways: dict[str, Figures]) -> str:
    """Return the ways from the shortest pause to the longest, and what those cost that break their streams."""
    whole = {way: f for way, f in ways.items() if not f["broken"] and f["pause_ms"] is not None}
    ordered = sorted(whole.items(), key=lambda item: item[1]["pause_ms"] or 0.0)
    noises = [f["noise_ms"] for _, f in ordered if f["noise_ms"] is not None]
    parts = []
    if ordered:
        noise = f" (where nothing happens: {ms(max(noises))})" if noises else ""
        listed = ", ".join(f"{way} {ms(f['pause_ms'])}" for way, f in ordered)
        parts.append(f"The worst stream's pause, and no stream broken: {listed}{noise}.")
    for way, f in ways.items():
        if f["broken"]:
            parts.append(
                f"{way} broke {f['broken']:.0f} streams and left everyone {ms(f['silence_ms'])} without a token."
            )
    return " ".join(parts)


def run_figures(run: Measured, change: MarkRow, quiet: Sequence[Measured]) -> Figures:
    """Return the figures of one change; `quiet` are runs in which nothing happened at that time."""
    said, load = detail(change), steady(run.streams)
    broken, unanswered = broken_counts(run.streams)
    during = token_times_ms(run.streams, Window(change.start_ns, change.end_ns))
    before = None
    if load is not None and load.start_ns < change.start_ns:
        before = token_times_ms(run.streams, Window(load.start_ns, change.start_ns))
    noise = [worst(other.pauses(change).ms) for other in quiet]
    return {
        "pause_ms": worst(run.pauses(change).ms),
        "pause_p50_ms": median(run.pauses(change).ms),
        "cutover_pause_ms": worst(run.pauses(run.cutover).ms) if run.cutover else None,
        "silence_ms": silence_ms(run.streams, change),
        "noise_ms": max((value for value in noise if value is not None), default=None),
        "change_ms": (change.end_ns - change.start_ns) / 1e6,
        "server_pause_ms": said.get("pause_ms"),
        "bytes_moved": said.get("bytes_moved"),
        "rounds": said.get("rounds"),
        "peak_extra_bytes": said.get("peak_extra_bytes"),
        "requests_carried": said.get("requests_carried"),
        "tpot_ratio": None
        if before is None or not len(during)
        else ratio(float(during.mean()), float(before.mean()) if len(before) else None),
        "broken": float(broken),
        "unanswered": float(unanswered),
    }


def _combined(each: Sequence[Figures]) -> Figures:
    found: Figures = {}
    for name in each[0]:
        values = [value for figures in each if (value := figures[name]) is not None]
        found[name] = (max if name in _WORST else middle)(values) if values else None
    return found
