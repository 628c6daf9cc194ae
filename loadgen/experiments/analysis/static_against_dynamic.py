"""The seed paper's table with our numbers: what a live change costs, against staying and against starting anew.

How each figure is counted, per run and then as the median over repeats (the worst, where it says so):

- downtime: what a client sees. For a live change the pause by the house definition (`loadgen.gaps`), of all streams
  that touch it: the largest gap that overlaps the change minus the stream's own median gap before. For a restart, which
  breaks its streams, the time without any token. Static arms have no change: their figure is the same definition over a
  window of the same length and place in which nothing happened, the noise of the definition.
- TTFT: time to first token of all requests of the run.
- TPOT: time per token, the mean of all gaps of the run under load.
- overheads: TTFT and TPOT of what waited or came within `AROUND_S` of the change, over the same of the rest of the same
  run under load; and over the same of the static arms.
- utilisation: share of time that a stage computed, mean over the run under load and over the stages; and the busiest
  stage's, which bounds the pipeline.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median as middle
from typing import Any

import numpy as np

from loadgen.experiments.analysis.findings import Findings, ms, published, ratio, size, times
from loadgen.experiments.analysis.kinds import StaticAgainstDynamic
from loadgen.experiments.analysis.measured import (
    Measured,
    broken_counts,
    busy_shares,
    detail,
    first_tokens_ms,
    median,
    silence_ms,
    steady,
    token_times_ms,
    worst,
)
from loadgen.gaps import Window
from loadgen.reports.series import rate_series
from loadgen.results.columns import MarkRow
from loadgen.results.figures import ttft_ms

AROUND_S = 5.0
_BEFORE_S, _AFTER_S, _BIN_S = 10.0, 10.0, 0.25

Figures = dict[str, float | None]


def analyse(analysis: StaticAgainstDynamic, runs: Sequence[Measured]) -> Findings:
    """Return the table."""
    arms = [analysis.before, analysis.after, analysis.dynamic, analysis.restart]
    like = {run.repeat: run.change for run in runs if run.arm == analysis.dynamic}
    each = {arm: [run_figures(run, like.get(run.repeat)) for run in runs if run.arm == arm] for arm in arms}
    combined = {arm: _combined(figures) for arm, figures in each.items()}
    static = {
        name: _mean([combined[analysis.before][name], combined[analysis.after][name]])
        for name in ("ttft_ms", "tpot_ms")
    }
    for arm in arms:
        for name, base in static.items():
            combined[arm][f"{name}_around_over_static"] = ratio(combined[arm][f"{name}_around"], base)
    notes = [
        (
            f"{max(map(len, each.values()))} run(s) of each arm; medians over runs, the worst where it says so. "
            f"Around the change: within {AROUND_S:g} s of it."
        ),
        "A static arm's pause is what the definition yields where nothing happened: noise.",
        *_setup_notes(runs),
    ]
    return Findings(
        kind=analysis.kind,
        title="Static against dynamic",
        headline=_headline(*(combined[arm] for arm in arms)),
        columns=("", *arms),
        rows=tuple((label, *(show(combined[arm]) for arm in arms)) for label, show in _ROWS),
        figures={"arms": combined, "runs": each, "around_s": AROUND_S, "over_time": _over_time(arms, runs, like)},
        notes=tuple(notes),
        published=published(analysis.kind),
    )


def _headline(before: Figures, after: Figures, dynamic: Figures, restart: Figures) -> str:
    """Return what the live change and the restart cost, in the same words."""
    noise = max((found for f in (before, after) if (found := f.get("downtime_ms")) is not None), default=None)
    without = f" ({ms(noise)} is what the same definition finds where nothing happens)" if noise is not None else ""
    pause, silence = dynamic.get("downtime_ms"), restart.get("downtime_ms")
    live = "a pause that could not be measured (too few tokens before it)" if pause is None else f"{ms(pause)} of pause"
    anew = "a time without tokens that could not be measured" if silence is None else f"{ms(silence)} without any token"
    return (
        f"A live change cost the worst stream {live}{without} and {_streams(dynamic)}; "
        f"the restart cost everyone {anew} and {_streams(restart)}."
    )


def _streams(figures: Figures) -> str:
    broken = round(figures.get("broken") or 0)
    return f"broke {broken or 'no'} stream{'' if broken == 1 else 's'}"


def _over_time(arms: Sequence[str], runs: Sequence[Measured], like: Mapping[int, MarkRow | None]) -> dict[str, Any]:
    """Return tokens per second of each arm's first run, in bins around its change; zero is where the change began.

    A static arm is looked at where the dynamic one changed.
    """
    shown: dict[str, Any] = {}
    firsts = [next(run for run in runs if run.arm == arm) for arm in arms]
    marks = [run.change or like.get(run.repeat) for run in firsts]
    longest_s = max((_length_s(mark) for mark in marks if mark is not None), default=0.0)
    for arm, run, mark in zip(arms, firsts, marks, strict=True):
        if mark is None or not run.streams.at_ns.size:
            continue
        at = run.streams.at_ns - mark.start_ns
        # Not beyond the run's own ends: there it is not the server that is silent.
        start_s, end_s = max(-_BEFORE_S, int(at.min()) / 1e9), min(longest_s + _AFTER_S, int(at.max()) / 1e9)
        if start_s >= end_s:
            continue
        series = rate_series(at, start_s, end_s, _BIN_S)
        shown[arm] = {
            "edges_s": series.edges_s.tolist(),
            "tokens_per_s": series.rates.tolist(),
            "change_s": None if run.change is None else _length_s(run.change),
        }
    return shown


def _length_s(mark: MarkRow) -> float:
    return (mark.end_ns - mark.start_ns) / 1e9


def run_figures(run: Measured, like: MarkRow | None) -> Figures:
    """Return the figures of one run; `like` is the change whose place a run without one looks at."""
    load, mark = steady(run.streams), run.change or like
    broken, unanswered = broken_counts(run.streams)
    found: Figures = {
        "ttft_ms": median(ttft_ms(run.streams)),
        "tpot_ms": None,
        "tokens_per_s": run.figures().output_tokens_per_s,
        "broken": float(broken),
        "unanswered": float(unanswered),
    }
    if load is not None:
        found["tpot_ms"] = _mean_of(token_times_ms(run.streams, load))
        shares = busy_shares(run.run, load)
        found["busy"] = sum(shares.values()) / len(shares) if shares else None
        found["busiest"] = max(shares.values(), default=None)
    if mark is None or load is None:
        return found
    around = Window(mark.start_ns - round(AROUND_S * 1e9), mark.end_ns + round(AROUND_S * 1e9))
    found |= _near(run, around, load)
    said = detail(run.change)
    seen = run.pauses(mark)
    found |= {
        "downtime_ms": silence_ms(run.streams, mark) if mark.kind == "restart" else worst(seen.ms),
        "downtime_p50_ms": None if mark.kind == "restart" else median(seen.ms),
        "change_ms": (run.change.end_ns - run.change.start_ns) / 1e6 if run.change else None,
        "cutover_pause_ms": worst(run.pauses(run.cutover).ms) if run.cutover else None,
        "server_pause_ms": said.get("pause_ms"),
        "bytes_moved": said.get("bytes_moved"),
        "peak_extra_bytes": said.get("peak_extra_bytes"),
    }
    return found


def _near(run: Measured, around: Window, load: Window) -> Figures:
    """Return TTFT and TPOT around the change and in the rest of the run, and their ratio."""
    rest = [
        Window(load.start_ns, max(load.start_ns, min(around.start_ns, load.end_ns))),
        Window(min(load.end_ns, max(around.end_ns, load.start_ns)), load.end_ns),
    ]
    near_ttft, near_tpot = first_tokens_ms(run.streams, around), token_times_ms(run.streams, around)
    far_ttft = np.concatenate([first_tokens_ms(run.streams, each) for each in rest])
    far_tpot = np.concatenate([token_times_ms(run.streams, each) for each in rest])
    found: Figures = {
        "ttft_ms_around": median(near_ttft),
        "ttft_ms_rest": median(far_ttft),
        "tpot_ms_around": _mean_of(near_tpot),
        "tpot_ms_rest": _mean_of(far_tpot),
    }
    for name in ("ttft_ms", "tpot_ms"):
        found[f"{name}_overhead"] = ratio(found[f"{name}_around"], found[f"{name}_rest"])
    return found


def _combined(each: Sequence[Figures]) -> Figures:
    """Return the figures of an arm: medians, and the worst downtime."""
    names = dict.fromkeys(name for figures in each for name in figures)
    found: Figures = {}
    for name in (*names, "ttft_ms_around", "tpot_ms_around"):
        values = [value for figures in each if (value := figures.get(name)) is not None]
        found[name] = (max if name in _WORST else middle)(values) if values else None
    return found


_WORST = {"downtime_ms", "cutover_pause_ms", "broken", "unanswered"}


def _setup_notes(runs: Sequence[Measured]) -> list[str]:
    manifest = runs[0].run.manifest
    machine, target, version = manifest.machine, manifest.target, manifest.target.get("vllm_version")
    return [
        (
            f"Ours: {target.get('model')}{f' on vLLM {version}' if version else ''}, {machine.get('cpus')} CPU cores "
            "shared by all stages, the clients and the generator, no GPU; layers stay on one node, so no KV is copied."
        ),
        (
            "The published figures are from two GPUs on two machines with models five hundred times as large: compare "
            "what a change costs relative to serving, not milliseconds."
        ),
    ]


def _mean_of(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("downtime, worst stream", lambda f: ms(f.get("downtime_ms"))),
    ("downtime, median stream", lambda f: ms(f.get("downtime_p50_ms"))),
    ("of it at the cutover", lambda f: ms(f.get("cutover_pause_ms"))),
    ("pause as the server reports it", lambda f: ms(f.get("server_pause_ms"))),
    ("streams broken", lambda f: _count(f.get("broken"))),
    ("requests that found no server", lambda f: _count(f.get("unanswered"))),
    ("whole change", lambda f: ms(f.get("change_ms"))),
    ("KV moved", lambda f: size(f.get("bytes_moved"))),
    ("extra memory at the peak", lambda f: size(f.get("peak_extra_bytes"))),
    ("TTFT, median", lambda f: ms(f.get("ttft_ms"))),
    ("TPOT, mean", lambda f: ms(f.get("tpot_ms"))),
    ("tokens per second", lambda f: _number(f.get("tokens_per_s"))),
    ("TTFT around the change, over the rest of the run", lambda f: times(f.get("ttft_ms_overhead"))),
    ("TPOT around the change, over the rest of the run", lambda f: times(f.get("tpot_ms_overhead"))),
    ("TTFT around the change, over static", lambda f: times(f.get("ttft_ms_around_over_static"))),
    ("TPOT around the change, over static", lambda f: times(f.get("tpot_ms_around_over_static"))),
    ("utilisation, mean of stages", lambda f: _share(f.get("busy"))),
    ("utilisation, busiest stage", lambda f: _share(f.get("busiest"))),
)
