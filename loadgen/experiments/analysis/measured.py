"""The runs of an experiment as an analysis needs them, and the few figures that several tables share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.errors import MeasurementError
from loadgen.gaps import Window
from loadgen.records import Outcome
from loadgen.results.columns import FINISHED, MANIFEST_FILE, OUTCOMES, STAGE_SAMPLE_PREFIX, MarkRow
from loadgen.results.figures import Figures, figures, ttft_ms
from loadgen.results.marked import Pauses, pauses
from loadgen.results.reader import Run, read_run
from loadgen.results.streams import NONE, Floats, Streams, streams_of
from loadgen.results.summary import marks_of, sampled

CHANGES = ("reconfigure", "restart")


@dataclass(frozen=True)
class Measured:
    """One finished run.

    Attributes:
        arm, repeat: Which one.
        run: Its folder's content.
        streams: Its streams.
        marks: Its marks, in order of time.
    """

    arm: str
    repeat: int
    run: Run
    streams: Streams
    marks: tuple[MarkRow, ...]

    @property
    def change(self) -> MarkRow | None:
        """The first change that the experiment itself made; None if it made none."""
        return next((m for m in self.marks if m.source == "experiment" and m.kind in CHANGES), None)

    @property
    def cutover(self) -> MarkRow | None:
        """The cutover of that change; None if the server did not name it."""
        return next((mark for mark in self.marks if mark.source == "experiment" and mark.kind == "cutover"), None)

    def figures(self) -> Figures:
        """Return the figures of all of its streams."""
        return figures(self.streams, self.run.manifest.slo)

    def pauses(self, mark: MarkRow) -> Pauses:
        """Return the pause of each of its streams over a mark."""
        return pauses(self.streams, mark.start_ns, mark.end_ns)


def measured_runs(folder: Path, arms: Sequence[str]) -> list[Measured]:
    """Return the finished runs of an experiment, in the order of arms and repeats.

    Raises:
        MeasurementError: an arm has no finished run.
        ResultsError: a run is damaged.
    """
    found: list[Measured] = []
    for arm in arms:
        repeats = sorted(int(path.name) for path in (folder / arm).glob("*") if path.name.isdecimal())
        runs = [read_run(folder / arm / str(n)) for n in repeats if (folder / arm / str(n) / MANIFEST_FILE).is_file()]
        finished = [run for run in runs if run.state == FINISHED]
        if not finished:
            raise MeasurementError(f"{folder}: arm {arm!r} has no finished run yet; go on with --resume")
        for run in finished:
            marks = tuple(sorted(marks_of(run), key=lambda mark: (mark.start_ns, mark.end_ns)))
            found.append(Measured(arm, run.manifest.repeat, run, streams_of(run), marks))
    return found


def detail(mark: MarkRow | None) -> dict[str, Any]:
    """Return what a mark says of itself."""
    return {} if mark is None else dict(json.loads(mark.detail))


def steady(streams: Streams) -> Window | None:
    """Return the time from the first token of the last of the first requests to the last token: the run under load.

    The start of a closed loop is no load yet: all users wait for their first token at once.
    """
    if not streams.at_ns.size:
        return None
    first_ends = np.where(streams.ended_ns == NONE, np.iinfo(np.int64).max, streams.ended_ns).min()
    early = streams.first_ns[(streams.sent_ns != NONE) & (streams.sent_ns <= first_ends) & (streams.first_ns != NONE)]
    start = int(early[early <= first_ends].max(initial=int(streams.at_ns.min())))
    return Window(start, max(start, int(streams.at_ns.max())))


def token_times_ms(streams: Streams, window: Window) -> Floats:
    """Return the gaps that end within (start, end] of a window, of streams that did not break."""
    gaps = streams.gaps
    inside = (gaps.end_ns > window.start_ns) & (gaps.end_ns <= window.end_ns) & ~streams.broken[gaps.stream]
    chosen: Floats = gaps.ns[inside] / 1e6
    return chosen


def first_tokens_ms(streams: Streams, window: Window) -> Floats:
    """Return the time to first token of streams that waited for it at some moment of a window."""
    waited = (streams.first_ns != NONE) & (streams.origin_ns != NONE) & ~streams.broken
    waited &= (streams.origin_ns < window.end_ns) & (streams.first_ns > window.start_ns)
    chosen: Floats = ttft_ms(streams)[waited]
    there: Floats = chosen[~np.isnan(chosen)]
    return there


def busy_shares(run: Run, window: Window) -> dict[str, float]:
    """Return how busy each stage was in a window: its mean share, by the stage's number."""
    found: dict[str, float] = {}
    for name in sorted(set(run.samples.column("name").to_pylist())):
        stage = name.removeprefix(STAGE_SAMPLE_PREFIX)
        if name == stage or not stage.endswith(".busy"):
            continue
        at_s, values = sampled(run, name)
        inside = (at_s * 1e9 > window.start_ns) & (at_s * 1e9 <= window.end_ns)
        if inside.any():
            found[stage.removesuffix(".busy")] = float(values[inside].mean())
    return found


def silence_ms(streams: Streams, mark: MarkRow) -> float | None:
    """Return the time around a mark without any token: from the last one that came before its end begun, to the next.

    It is the longest stretch between two tokens of any streams that overlaps the mark.
    """
    at = np.sort(streams.at_ns)
    if at.size < 2:
        return None
    overlapping = (at[:-1] < mark.end_ns) & (at[1:] > mark.start_ns)
    return float(np.diff(at)[overlapping].max()) / 1e6 if overlapping.any() else None


def broken_counts(streams: Streams) -> tuple[int, int]:
    """Return how many streams broke, and how many more requests found no server to answer them."""
    unanswered = np.isin(
        streams.outcome, [OUTCOMES.index(outcome) for outcome in (Outcome.UNREACHABLE, Outcome.REFUSED)]
    )
    return int((streams.broken & ~unanswered).sum()), int(unanswered.sum())


def worst(values: Floats) -> float | None:
    """Return the largest value that is one; None if there is none."""
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else None


def median(values: Floats) -> float | None:
    """Return the median of the values that are some; None if there is none."""
    there = values[~np.isnan(values)]
    return float(np.median(there)) if there.size else None
