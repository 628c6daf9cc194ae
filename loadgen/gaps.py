"""Latency metrics over stream records, above all the pause.

The pause, by the house definition: the largest gap between two consecutive tokens of one stream that overlaps the
window of a change, minus the median gap of the same stream before the window. Three situations have no such figure
and are reported as what they are, never as a small pause:

- the stream has too few gaps before the window for a median to mean anything;
- no gap of the stream overlaps the window (it had ended, or had not begun);
- the stream broke: its last token is followed by nothing, so the true gap has no end.

Units: milliseconds for durations, nanoseconds of `loadgen.clock`'s axis for moments. Tokens that arrive in one read
have gaps of zero between them; that is what a user sees, and it makes a pause larger, never smaller.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from loadgen.records import StreamRecord

MIN_QUIET_GAPS = 8  # below this a median says little about a stream's rhythm


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the time axis, in nanoseconds; an instant if both ends are equal."""

    start_ns: int
    end_ns: int

    def __post_init__(self) -> None:
        if self.end_ns < self.start_ns:
            raise ValueError(f"a window ends before it starts: {self.start_ns} ns to {self.end_ns} ns")

    @property
    def ms(self) -> float:
        """Length in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6

    def overlaps(self, other: "Window") -> bool:
        """Whether the two share more than an end point; an instant overlaps what it lies inside of."""
        return self.start_ns < other.end_ns and other.start_ns < self.end_ns

    def contains(self, other: "Window") -> bool:
        """Whether `other` lies wholly inside this window, end points included."""
        return self.start_ns <= other.start_ns and other.end_ns <= self.end_ns


class PauseStatus(StrEnum):
    """Whether a stream yields a pause, and if not, why."""

    MEASURED = "measured"
    TOO_FEW_QUIET_GAPS = "too_few_quiet_gaps"
    NO_OVERLAP = "no_overlap"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Pause:
    """The pause of one stream.

    Attributes:
        name: The stream's name.
        status: Whether there is a figure.
        ms: The pause in milliseconds, None unless measured. Slightly negative when the window saw only short gaps.
        largest_gap_ms: Largest gap that overlaps the window; None if no gap does.
        quiet_gap_ms: Median gap before the window; None if there are too few.
        at_ms: Where the largest gap begins, relative to the start of the window.
    """

    name: str
    status: PauseStatus
    ms: float | None
    largest_gap_ms: float | None
    quiet_gap_ms: float | None
    at_ms: float | None


def percentile(values: Iterable[float], q: float) -> float:
    """Return the q-th percentile (0 to 100), interpolated linearly between the two nearest values.

    Raises:
        ValueError: there are no values, or q is out of range.
    """
    ordered = sorted(values)
    if not ordered or not 0 <= q <= 100:
        raise ValueError(f"percentile {q} of {len(ordered)} values: needs a value and 0 <= q <= 100")
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    low, high = ordered[below], ordered[math.ceil(position)]
    return low + (high - low) * (position - below)


def gaps(record: StreamRecord) -> list[Window]:
    """Return the gaps between consecutive tokens, each from one arrival to the next."""
    return [Window(a.arrived_ns, b.arrived_ns) for a, b in pairwise(record.tokens)]


def inter_token_latencies_ms(record: StreamRecord, within: Window | None = None) -> list[float]:
    """Return the gaps in milliseconds, only those wholly inside `within` if it is given."""
    return [gap.ms for gap in gaps(record) if within is None or within.contains(gap)]


def time_to_first_token_ms(record: StreamRecord) -> float | None:
    """Return the time from sending the request to its first token; None if none came."""
    return (record.tokens[0].arrived_ns - record.started_ns) / 1e6 if record.tokens else None


def largest_gap(record: StreamRecord, window: Window | None = None) -> Window | None:
    """Return the longest gap, of those that overlap `window` if it is given; None if there is none."""
    candidates = [gap for gap in gaps(record) if window is None or gap.overlaps(window)]
    return max(candidates, key=lambda gap: gap.ms, default=None)


def pause(
    record: StreamRecord,
    window: Window,
    *,
    quiet_before_ns: int | None = None,
    predecessors: Sequence[StreamRecord] = (),
    min_quiet_gaps: int = MIN_QUIET_GAPS,
) -> Pause:
    """Measure the pause of one stream over the window of a change.

    Args:
        record: The stream.
        window: The change, or an instant within it.
        quiet_before_ns: Where the quiet part ends, if that is earlier than the start of `window` (for an instant
            within a change, the start of the change).
        predecessors: Earlier streams of the same closed-loop client. A stream that began late, or during the change,
            is judged against the rhythm its client saw before; leave empty for the bare definition.
        min_quiet_gaps: Gaps needed before the window.
    """
    quiet_end = window.start_ns if quiet_before_ns is None else quiet_before_ns
    quiet = [gap.ms for r in (*predecessors, record) for gap in gaps(r) if gap.end_ns <= quiet_end]
    median = percentile(quiet, 50) if len(quiet) >= max(1, min_quiet_gaps) else None
    largest = largest_gap(record, window)
    status, ms = PauseStatus.MEASURED, None
    if record.broken and _open_gap(record).overlaps(window):
        status = PauseStatus.BROKEN
    elif largest is None:
        status = PauseStatus.NO_OVERLAP
    elif median is None:
        status = PauseStatus.TOO_FEW_QUIET_GAPS
    else:
        ms = largest.ms - median
    return Pause(
        name=record.name,
        status=status,
        ms=ms,
        largest_gap_ms=None if largest is None else largest.ms,
        quiet_gap_ms=median,
        at_ms=None if largest is None else (largest.start_ns - window.start_ns) / 1e6,
    )


def _open_gap(record: StreamRecord) -> Window:
    last = record.tokens[-1].arrived_ns if record.tokens else record.started_ns
    return Window(last, record.ended_ns)


def full_load(records: Sequence[StreamRecord], streams: int) -> Window | None:
    """Return the stretch during which all `streams` closed-loop clients were generating.

    It runs from the moment by which every client (told apart by name) had its first token to the moment at which the
    first client had its last. Outside it a server has less to do and its gaps flatter it. None if some client had no
    token or the stretch is empty.
    """
    arrivals: dict[str, list[int]] = {}
    for record in records:
        arrivals.setdefault(record.name, []).extend(token.arrived_ns for token in record.tokens)
    if len(arrivals) < streams or not all(arrivals.values()):
        return None
    start, end = max(map(min, arrivals.values())), min(map(max, arrivals.values()))
    return Window(start, end) if start < end else None


def tokens_per_second(records: Iterable[StreamRecord], window: Window) -> float | None:
    """Return the tokens per second of all streams within (start, end] of the window; None if it is an instant."""
    if window.end_ns == window.start_ns:
        return None
    count = sum(window.start_ns < t.arrived_ns <= window.end_ns for r in records for t in r.tokens)
    return count / (window.ms / 1e3)
