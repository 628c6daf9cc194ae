"""What differs between two runs, or between two arms of several repeats, and whether it is more than noise.

For each figure the ratio B / A with a 95 % confidence interval, and a verdict:

- better, worse: the interval lies on one side of 1 and the ratio is at least `NEGLIGIBLE` away from it;
- within noise: it does not;
- too few: there are not enough streams for this percentile, or nothing to divide by.

Intervals. One run a side: a bootstrap over streams, or over stretches of time for rates (`loadgen.reports.bootstrap`).
It covers how streams of one run vary; what makes the next run of the same thing different (another neighbour on the
machine, another order of requests) it cannot know, and a note says so. Several repeats on both sides: Welch's
t interval of the logarithms of the repeats' own figures, or the bootstrap's interval of all streams together where that
is wider; with two or three repeats it is wide, as it should be.

At 95 %, one of twenty figures of two equal runs will look different: read the verdicts together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from loadgen.reports.bootstrap import STRETCHES, clustered_quantile_draws, quantile_draws, rate_draws, stretch_draws
from loadgen.reports.student import t_quantile
from loadgen.results.errors import NotComparable
from loadgen.results.figures import counted_streams, e2e_ms, largest_gap_ms, meets, tpot_ms, ttft_ms
from loadgen.results.reader import Run
from loadgen.results.streams import Floats, Int64, Streams, streams_of
from loadgen.results.summary import generator_figures

NEGLIGIBLE = 0.01  # no difference below 1 % is claimed: the generator itself is not more exact
CONFIDENCE = 0.95
_BEYOND = 5  # streams that must lie beyond a percentile on average before it is compared
_PERCENTILES = (50.0, 90.0, 99.0)


class Verdict(StrEnum):
    """What a comparison says of one figure."""

    BETTER = "better"
    WORSE = "worse"
    WITHIN_NOISE = "within noise"
    TOO_FEW = "too few"


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of both sides.

    Attributes:
        name: For example "TTFT p50".
        unit: Of `a` and `b`.
        lower_is_better: Which direction is good.
        a, b: The figure; of several repeats their geometric mean. None if a side has none.
        n_a, n_b: Streams that it rests on.
        ratio: b / a; None if it cannot be formed.
        low, high: Its 95 % confidence interval; None if there are too few.
        verdict: What it means for B.
    """

    name: str
    unit: str
    lower_is_better: bool
    a: float | None
    b: float | None
    n_a: int
    n_b: int
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides compared.

    Attributes:
        a, b: Names of the sides.
        runs_a, runs_b: Repeats of each.
        seed: Of the bootstrap.
        figures: One for each figure.
        warnings: What differs between the sides apart from what is compared, and what the intervals do not cover.
    """

    a: str
    b: str
    runs_a: int
    runs_b: int
    seed: int
    figures: tuple[ComparedFigure, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Side:
    runs: Sequence[Run]
    streams: Sequence[Streams]

    @property
    def name(self) -> str:
        return self.runs[0].manifest.arm or self.runs[0].manifest.name


@dataclass(frozen=True, slots=True)
class _Measured:
    """One figure of one side: of every repeat, the bootstrap's draws of all together, and what it rests on."""

    values: tuple[float, ...]
    draws: Floats | None
    n: int

    @property
    def value(self) -> float | None:
        if not self.values or min(self.values) <= 0:
            return None
        return math.exp(sum(map(math.log, self.values)) / len(self.values))


def compare(a: Sequence[Run], b: Sequence[Run], *, seed: int = 0, draws: int = 2_000) -> Comparison:
    """Compare B with A; each is one run or the repeats of one arm.

    Args:
        a: What to compare with.
        b: What is compared.
        seed: Of the bootstrap: the same seed, the same intervals.
        draws: Of the bootstrap.

    Raises:
        NotComparable: a side is empty, still running, without finished requests, or a mixture; or both are the same.
    """
    for label, runs in (("A", a), ("B", b)):
        _check_side(label, runs)
    both = {run.folder for run in a} & {run.folder for run in b}
    if both:
        raise NotComparable(f"{min(both)} is on both sides: give two different runs")
    side_a, side_b = (_Side(runs, [streams_of(run) for run in runs]) for runs in (a, b))
    for label, side in (("A", side_a), ("B", side_b)):
        if not any(streams.finished.any() for streams in side.streams):
            raise NotComparable(f"{label} ({side.name}) has no finished request: there is nothing to compare")
    generator = np.random.default_rng(seed)
    figures: list[ComparedFigure] = []
    for name, unit, lower_is_better, measure in _measures(a[0], b[0], stretch_draws(draws, generator)):
        pairs = zip(measure(side_a, draws, generator), measure(side_b, draws, generator), strict=True)
        figures.extend(
            _judge(f"{name}{suffix}", unit, lower_is_better, of_a, of_b) for (suffix, of_a), (_, of_b) in pairs
        )
    warnings = [
        f"{label}: the generator fell behind in {run.folder}: its figures are not the server's alone"
        for label, side in (("A", side_a), ("B", side_b))
        for run, streams in zip(side.runs, side.streams, strict=True)
        if generator_figures(run, streams).fell_behind
    ]
    warnings += _differences(a, b)
    name_a, name_b = side_a.name, side_b.name
    if name_a == name_b:
        name_a, name_b = (f"{name_a} ({runs[0].folder})" for runs in (a, b))
    return Comparison(name_a, name_b, len(a), len(b), seed, tuple(figures), tuple(warnings))


def _check_side(label: str, runs: Sequence[Run]) -> None:
    if not runs:
        raise NotComparable(f"{label} holds no run")
    for run in runs:
        if run.state == "running":
            raise NotComparable(f"{label} ({run.folder}) is still running: wait for its end")
    names = {(run.manifest.name, run.manifest.arm) for run in runs}
    if len(names) > 1:
        listed = ", ".join(sorted(f"{name}/{arm}" if arm else name for name, arm in names))
        raise NotComparable(f"{label} is a mixture of {listed}: give one arm, or one run")


_Measure = Callable[[_Side, int, np.random.Generator], list[tuple[str, _Measured]]]


def _measures(a: Run, b: Run, stretches: Int64) -> list[tuple[str, str, bool, _Measure]]:
    measures: list[tuple[str, str, bool, _Measure]] = [
        ("TTFT", "ms", True, _per_stream(ttft_ms)),
        ("TPOT", "ms", True, _per_stream(tpot_ms)),
        ("ITL", "ms", True, _gap_percentiles),
        ("largest gap", "ms", True, _per_stream(largest_gap_ms)),
        ("E2E", "ms", True, _per_stream(e2e_ms)),
        ("output tokens", "/s", False, _rate(lambda _, streams: streams.at_ns, stretches)),
        ("finished requests", "/s", False, _rate(lambda _, streams: streams.ended_ns[streams.finished], stretches)),
    ]
    if a.manifest.slo.stated and a.manifest.slo == b.manifest.slo:
        measures.append(
            (
                "goodput",
                "/s",
                False,
                _rate(lambda run, streams: streams.ended_ns[meets(streams, run.manifest.slo)], stretches),
            )
        )
    return measures


def _per_stream(value: Callable[[Streams], Floats]) -> _Measure:
    def measure(side: _Side, draws: int, generator: np.random.Generator) -> list[tuple[str, _Measured]]:
        repeats = []
        for streams in side.streams:
            values = value(streams)[counted_streams(streams)]
            repeats.append(values[~np.isnan(values)])
        together = np.concatenate(repeats)
        found = []
        for q in _PERCENTILES:
            drawn = quantile_draws(together, q, draws, generator) if _enough(len(together), q) else None
            each = tuple(float(np.percentile(values, q)) for values in repeats if len(values))
            found.append((f" p{q:g}", _Measured(each, drawn, len(together))))
        return found

    return measure


def _gap_percentiles(side: _Side, draws: int, generator: np.random.Generator) -> list[tuple[str, _Measured]]:
    gaps, streams_of_gaps, each, first = [], [], [], 0
    for streams in side.streams:
        counted = counted_streams(streams)[streams.gaps.stream] & ~streams.gaps.in_chunk
        gaps.append(streams.gaps.ns[counted] / 1e6)
        streams_of_gaps.append(streams.gaps.stream[counted] + first)
        first += len(streams)
        each.append(gaps[-1])
    together, stream = np.concatenate(gaps), np.concatenate(streams_of_gaps)
    n = len(np.unique(stream))
    # A percentile of gaps rests on all streams, not only on those beyond it: ten of them are enough to draw from.
    drawn = clustered_quantile_draws(together, stream, _PERCENTILES, draws, generator) if n >= 2 * _BEYOND else {}
    return [
        (
            f" p{q:g}",
            _Measured(tuple(float(np.percentile(values, q)) for values in each if len(values)), drawn.get(q), n),
        )
        for q in _PERCENTILES
    ]


def _rate(events: Callable[[Run, Streams], Int64], stretches: Int64) -> _Measure:
    def measure(side: _Side, _draws: int, _generator: np.random.Generator) -> list[tuple[str, _Measured]]:
        values, drawn, n = [], [], 0
        for run, streams in zip(side.runs, side.streams, strict=True):
            span = streams.span_ns
            at_ns = events(run, streams)
            if span is None or span[0] == span[1]:
                continue
            draws_of_run, rates = rate_draws(at_ns, span, stretches)
            values.append(float(rates.mean()))
            drawn.append(draws_of_run)
            n += len(at_ns)
        enough = n >= STRETCHES * _BEYOND
        return [("", _Measured(tuple(values), np.mean(drawn, axis=0) if drawn and enough else None, n))]

    return measure


def _enough(n: int, q: float) -> bool:
    return n * min(q, 100 - q) / 100 >= _BEYOND


def _judge(name: str, unit: str, lower_is_better: bool, a: _Measured, b: _Measured) -> ComparedFigure:
    ratio = None if a.value is None or b.value is None else b.value / a.value
    interval = None if ratio is None else _interval(ratio, a, b)
    return ComparedFigure(
        name=name,
        unit=unit,
        lower_is_better=lower_is_better,
        a=a.value,
        b=b.value,
        n_a=a.n,
        n_b=b.n,
        ratio=ratio,
        low=None if interval is None else interval[0],
        high=None if interval is None else interval[1],
        verdict=Verdict.TOO_FEW if ratio is None or interval is None else _verdict(ratio, interval, lower_is_better),
    )


def _verdict(ratio: float, interval: tuple[float, float], lower_is_better: bool) -> Verdict:
    low, high = interval
    if abs(ratio - 1) < NEGLIGIBLE or low <= 1 <= high:
        return Verdict.WITHIN_NOISE
    return Verdict.BETTER if (ratio < 1) == lower_is_better else Verdict.WORSE


def _interval(ratio: float, a: _Measured, b: _Measured) -> tuple[float, float] | None:
    if a.draws is None or b.draws is None or (a.draws <= 0).any() or (b.draws <= 0).any():
        return None
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(b.draws / a.draws, [tail, 100 - tail]).tolist()
    if len(a.values) > 1 and len(b.values) > 1:
        half = _welch_half_width(np.log(a.values), np.log(b.values))
        low, high = min(low, ratio * math.exp(-half)), max(high, ratio * math.exp(half))
    return min(low, ratio), max(high, ratio)


def _welch_half_width(a: Floats, b: Floats) -> float:
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if of_a + of_b == 0:
        return 0.0
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return float(t_quantile(1 - (1 - CONFIDENCE) / 2, freedom) * math.sqrt(of_a + of_b))


def _differences(a: Sequence[Run], b: Sequence[Run]) -> list[str]:
    found = []
    first_a, first_b = a[0].manifest, b[0].manifest
    seeds_a, seeds_b = ({run.manifest.seed for run in runs} for runs in (a, b))
    if seeds_a != seeds_b:
        found.append(f"seeds differ: {_listed(seeds_a)} and {_listed(seeds_b)}: other requests were sent")
    if first_a.workload != first_b.workload:
        found.append(f"workloads differ in {_differing(first_a.workload, first_b.workload)}")
    target_a, target_b = _told_apart_by(first_a.target), _told_apart_by(first_b.target)
    if target_a != target_b:
        found.append(f"targets differ in {_differing(target_a, target_b)}")
    stable_a, stable_b = ({k: v for k, v in m.machine.items() if k != "load_average_1m"} for m in (first_a, first_b))
    if stable_a != stable_b:
        found.append(f"machines differ in {_differing(stable_a, stable_b)}")
    if first_a.versions != first_b.versions:
        found.append(f"versions differ: {_differing(first_a.versions, first_b.versions)}")
    if first_a.slo != first_b.slo:
        found.append("service levels differ: goodput is not compared")
    for label, runs in (("A", a), ("B", b)):
        found.extend(f"{label}: {run.folder.name} is {run.state}" for run in runs if run.state != "finished")
        found.extend(f"{label}: {note}" for run in runs for note in run.notes)
    if len(a) == 1 or len(b) == 1:
        found.append(
            "one run on a side: the intervals cover how streams vary within it, not how one run differs from the next; "
            "repeat both for that"
        )
    return found


def _told_apart_by(target: dict[str, Any]) -> dict[str, Any]:
    """Return what of a target makes it another one: a server that was started has a new port every time."""
    started = target.get("kind") not in (None, "endpoint")
    return {key: value for key, value in target.items() if not (started and key == "base_url")}


def _listed(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _differing(a: dict[str, Any], b: dict[str, Any]) -> str:
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return "; ".join(f"{key} ({a.get(key, 'none')} and {b.get(key, 'none')})" for key in keys)
