"""How pause and total time of a change grow with the KV that it finds: a line through the runs, by least squares.

The abscissa is the KV in the pipeline when the change began, in tokens: over all streams that were open then, the
prompt and what had been generated, that is context length times streams. The slope comes with its confidence interval
from Student's t for n-2 degrees of freedom. If the interval holds 0, nothing is known to grow.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadgen.errors import MeasurementError
from loadgen.experiments.analysis.findings import Findings, ms, published, size
from loadgen.experiments.analysis.kinds import Growth
from loadgen.experiments.analysis.measured import Measured, detail, median, worst
from loadgen.reports.student import t_quantile
from loadgen.results.columns import MarkRow
from loadgen.results.streams import NONE, Streams

CONFIDENCE = 0.95
_LEAST_RUNS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line y = intercept + slope * x, with the interval that holds the slope with `CONFIDENCE`.

    Attributes:
        r_squared: Share of the variance that the line explains; None where y does not vary.
        x_mean, x_spread: Mean of the x, and the sum of their squared distances from it.
    """

    slope: float
    low: float
    high: float
    intercept: float
    r_squared: float | None
    n: int
    x_mean: float
    x_spread: float

    @property
    def grows(self) -> bool | None:
        """Whether y is known to grow (True) or shrink (False); None if neither."""
        return True if self.low > 0 else False if self.high < 0 else None

    def at(self, x: float) -> tuple[float, float, float]:
        """Return y at x and the ends of the interval that holds the true line there with `CONFIDENCE`."""
        y = self.intercept + self.slope * x
        reach = (self.high - self.slope) * math.sqrt(self.x_spread / self.n + (x - self.x_mean) ** 2)
        return y, y - reach, y + reach


def fit(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Return the line through the points; None for fewer than three, or if all x are equal."""
    if len(x) < _LEAST_RUNS or len(set(x)) < 2:
        return None
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float((dx * dy).sum() / (dx**2).sum())
    left = float(((dy - slope * dx) ** 2).sum())
    total = float((dy**2).sum())
    spread = float((dx**2).sum())
    error = math.sqrt(left / (len(xs) - 2) / spread)
    reach = t_quantile(0.5 + CONFIDENCE / 2, len(xs) - 2) * error
    explained = 1 - left / total if total else None
    mean = float(xs.mean())
    intercept = float(ys.mean()) - slope * mean
    return Line(slope, slope - reach, slope + reach, intercept, explained, len(xs), mean, spread)


def tokens_held(streams: Streams, at_ns: int) -> tuple[int, int]:
    """Return the tokens of KV that open streams hold at a moment, and how many streams these are."""
    ended = np.where(streams.ended_ns == NONE, np.iinfo(np.int64).max, streams.ended_ns)
    is_open = (streams.first_ns != NONE) & (streams.first_ns <= at_ns) & (ended > at_ns)
    arrived = np.bincount(streams.stream_of_token[streams.at_ns <= at_ns], minlength=len(streams))
    prompts = np.maximum(streams.prompt_tokens, 0)
    return int((prompts + arrived)[is_open].sum()), int(is_open.sum())


def analyse(analysis: Growth, runs: Sequence[Measured]) -> Findings:
    """Return the table, one row for each group and figure.

    Raises:
        MeasurementError: no run of a group has a change.
    """
    rows: list[tuple[str, ...]] = []
    found: dict[str, Any] = {}
    notes, sentences = [], []
    for group in analysis.groups:
        points = [
            _point(run, change) for run in runs if run.arm.startswith(group) and (change := run.change) is not None
        ]
        if not points:
            raise MeasurementError(f"no arm that begins with {group!r} has a change in it")
        lines = {name: _line(points, name) for name in ("pause_ms", "total_ms", "bytes_moved")}
        found[group or "all"] = {
            "points": points,
            "lines": {name: None if line is None else asdict(line) for name, line in lines.items()},
        }
        for name, label in (
            ("pause_ms", "pause, worst stream"),
            ("total_ms", "whole change"),
            ("bytes_moved", "KV moved"),
        ):
            rows.append((f"{group_name(group)}: {label}", *_cells(lines[name], points, name)))
        sentences.append(_sentence(group, lines, points))
        held = [point["kv_tokens"] for point in points]
        notes.append(f"{group_name(group)}: {len(points)} runs, {min(held)} to {max(held)} tokens of KV.")
    return Findings(
        kind=analysis.kind,
        title="Growth with the KV that a change finds",
        headline=" ".join(sentences),
        columns=(
            "",
            "least",
            "most",
            "slope per 1000 tokens of KV",
            f"{CONFIDENCE:.0%} interval",
            "R²",
            "runs",
            "grows",
        ),
        rows=tuple(rows),
        figures={"groups": found, "confidence": CONFIDENCE},
        notes=(
            *notes,
            "KV: prompt and generated tokens of all streams that were open when the change began (context x streams).",
            "Least squares; the interval is of the slope. 'no' means that the interval holds 0.",
        ),
        published=published(analysis.kind),
    )


def group_name(group: str) -> str:
    """Return what a group is called: the beginning of its arms' names without the joint."""
    return group.rstrip("-._") or "all"


def _sentence(group: str, lines: dict[str, Line | None], points: Sequence[dict[str, Any]]) -> str:
    """Return what is known of a group's growth."""
    subject = f"{group_name(group)}: "
    parts = []
    for name, what in (("pause_ms", "pause of the worst stream"), ("total_ms", "whole change")):
        values = [point[name] for point in points if point[name] is not None]
        line = lines[name]
        if line is None or not values:
            continue
        span = f"{what}, {ms(min(values))} to {ms(max(values))},"
        interval = f"{ms(1e3 * line.low)} to {ms(1e3 * line.high)} per 1000 tokens"
        if line.grows is None:
            parts.append(f"{span} is not seen to grow with the KV ({interval})")
        else:
            slope = ms(1e3 * abs(line.slope))
            parts.append(f"{span} {'grows' if line.grows else 'shrinks'} by {slope} per 1000 tokens of KV ({interval})")
    return subject + ("; ".join(parts) or "too few runs for a line") + "."


def _point(run: Measured, change: MarkRow) -> dict[str, Any]:
    held, streams = tokens_held(run.streams, change.start_ns)
    said, seen = detail(change), run.pauses(change)
    return {
        "arm": run.arm,
        "repeat": run.repeat,
        "kv_tokens": held,
        "streams": streams,
        "pause_ms": worst(seen.ms),
        "pause_p50_ms": median(seen.ms),
        "total_ms": (change.end_ns - change.start_ns) / 1e6,
        "bytes_moved": said.get("bytes_moved"),
        "rounds": said.get("rounds"),
        "method": said.get("method"),
    }


def _line(points: Sequence[dict[str, Any]], name: str) -> Line | None:
    there = [(float(point["kv_tokens"]), float(point[name])) for point in points if point[name] is not None]
    return fit([x for x, _ in there], [y for _, y in there])


def _cells(line: Line | None, points: Sequence[dict[str, Any]], name: str) -> tuple[str, ...]:
    show = size if name == "bytes_moved" else ms
    values = [float(point[name]) for point in points if point[name] is not None]
    ends = (show(min(values)), show(max(values))) if values else ("-", "-")
    if line is None:
        return (*ends, "-", "-", "-", str(len(values)), "-")
    answer = {True: "yes", False: "shrinks", None: "no"}[line.grows]
    explained = "-" if line.r_squared is None else f"{line.r_squared:.2f}"
    interval = f"{show(1e3 * line.low)} to {show(1e3 * line.high)}"
    return (*ends, show(1e3 * line.slope), interval, explained, str(line.n), answer)
