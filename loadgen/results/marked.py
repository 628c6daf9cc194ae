"""What the streams saw of each marked moment: a reconfiguration, a kill, an intent.

The pause of a stream is defined in `loadgen.gaps`: the largest gap that overlaps the mark, minus the median of the same
stream's gaps that ended before it. This is that definition for all streams of a run at once, with its edge cases: fewer
than `MIN_QUIET_GAPS` gaps before the mark, no gap that overlaps it, a stream that broke in it.

Two things are added. A stream that the generator cancelled, because the run was over, did not break; the wait in which
it was cancelled counts as a gap. That is a lower bound of its pause, and `censored` says for how many streams. And the
largest of several gaps lies above their median even when nothing happens, the more the longer the mark takes; so the
same is measured over a stretch of equal length before the mark (`usual_excess_ms`), for comparison.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from loadgen.gaps import MIN_QUIET_GAPS, PauseStatus
from loadgen.results.columns import MarkRow
from loadgen.results.figures import Distribution, distribution
from loadgen.results.streams import NONE, Bools, Floats, Int64, Streams

STATUSES = tuple(PauseStatus)
_NEVER = np.iinfo(np.int64).max
_APART_NS = 500_000_000


class MarkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one mark did to the streams.

    Attributes:
        name, kind, source, detail: As recorded.
        start_s: When it began, in seconds since the start of the run.
        duration_ms: How long it took; 0 for an instant.
        streams: Streams that a gap or a break ties to it.
        excess_ms: Pauses of the streams that have one; None if none has.
        usual_excess_ms: The same over a stretch of equal length that ends `_APART_NS` or more before the mark begins.
        largest_gap_ms: Largest gap that overlaps the mark, of any stream that has one.
        worst_request: The request with the longest pause.
        too_few_quiet_gaps: Streams that overlap the mark but have too little before it to compare with.
        broke: Streams that broke in it.
        censored: Streams whose pause is a lower bound.
        silence_ms: Longest time around the mark in which not one of these streams received a token.
    """

    name: str
    kind: str
    source: str
    detail: str
    start_s: float
    duration_ms: float
    streams: int
    excess_ms: Distribution | None
    usual_excess_ms: Distribution | None
    largest_gap_ms: float | None
    worst_request: int | None
    too_few_quiet_gaps: int
    broke: int
    censored: int
    silence_ms: float | None


class Pauses(msgspec.Struct, frozen=True):
    """The pause of every stream over one mark.

    Attributes:
        status: Position in `STATUSES` for each stream.
        ms: The pause, NaN unless measured.
        largest_ms: Largest gap that overlaps the mark, NaN if none does.
        quiet_ms: Median gap before it, NaN if there are too few.
        censored: Whether the pause is a lower bound.
    """

    status: Int64
    ms: Floats
    largest_ms: Floats
    quiet_ms: Floats
    censored: Bools


def pauses(streams: Streams, start_ns: int, end_ns: int, *, min_quiet_gaps: int = MIN_QUIET_GAPS) -> Pauses:
    """Measure the pause of every stream over [start, end]; an instant if both are equal."""
    gaps = streams.gaps
    largest = np.full(len(streams), -1, dtype=np.int64)
    hits = np.flatnonzero((gaps.start_ns < end_ns) & (start_ns < gaps.end_ns))
    if hits.size:
        hit_streams, starts = np.unique(gaps.stream[hits], return_index=True)  # gaps are in order of stream
        largest[hit_streams] = np.maximum.reduceat(gaps.ns[hits], starts)
    ended = np.where(streams.ended_ns == NONE, streams.open_ns, streams.ended_ns)
    open_overlaps = (streams.open_ns < end_ns) & (start_ns < ended)
    waiting = streams.cancelled & open_overlaps & (streams.count > 0)
    censored = waiting & (ended - streams.open_ns > largest)
    largest[waiting] = np.maximum(largest, ended - streams.open_ns)[waiting]
    broke = streams.broken & open_overlaps
    overlapping = largest >= 0
    quiet_ms = _quiet_medians_ms(streams, start_ns, overlapping, min_quiet_gaps)

    status = np.full(len(streams), STATUSES.index(PauseStatus.MEASURED), dtype=np.int64)
    status[np.isnan(quiet_ms)] = STATUSES.index(PauseStatus.TOO_FEW_QUIET_GAPS)
    status[~overlapping] = STATUSES.index(PauseStatus.NO_OVERLAP)
    status[broke] = STATUSES.index(PauseStatus.BROKEN)
    largest_ms = np.where(overlapping, largest / 1e6, np.nan)
    measured = status == STATUSES.index(PauseStatus.MEASURED)
    return Pauses(status, np.where(measured, largest_ms - quiet_ms, np.nan), largest_ms, quiet_ms, censored)


def _quiet_medians_ms(streams: Streams, before_ns: int, members: Bools, at_least: int) -> Floats:
    """Median of each member's gaps that ended by `before_ns`, NaN where there are fewer than `at_least`."""
    medians = np.full(len(streams), np.nan)
    gaps = streams.gaps
    quiet = np.flatnonzero(members[gaps.stream] & (gaps.end_ns <= before_ns))
    stream, ns = gaps.stream[quiet], gaps.ns[quiet]
    ns = ns[np.lexsort((ns, stream))]
    counts = np.bincount(stream, minlength=len(streams))
    enough = np.flatnonzero(counts >= max(1, at_least))
    first = (np.cumsum(counts) - counts)[enough]
    medians[enough] = (ns[first + (counts[enough] - 1) // 2] + ns[first + counts[enough] // 2]) / 2e6
    return medians


def mark_figures(streams: Streams, marks: Iterable[MarkRow]) -> list[MarkFigures]:
    """Return what each mark did, in order of time."""
    return [_figures_of(streams, mark) for mark in sorted(marks, key=lambda mark: (mark.start_ns, mark.end_ns))]


def _figures_of(streams: Streams, mark: MarkRow) -> MarkFigures:
    seen = pauses(streams, mark.start_ns, mark.end_ns)
    shift_ns = mark.end_ns - mark.start_ns + _APART_NS
    before = pauses(streams, mark.start_ns - shift_ns, mark.end_ns - shift_ns)
    measured = ~np.isnan(seen.ms)
    touched = seen.status != STATUSES.index(PauseStatus.NO_OVERLAP)
    return MarkFigures(
        name=mark.name,
        kind=mark.kind,
        source=mark.source,
        detail=mark.detail,
        start_s=mark.start_ns / 1e9,
        duration_ms=(mark.end_ns - mark.start_ns) / 1e6,
        streams=int(touched.sum()),
        excess_ms=distribution(seen.ms[measured]),
        usual_excess_ms=distribution(before.ms[~np.isnan(before.ms)]),
        largest_gap_ms=None if np.isnan(seen.largest_ms).all() else float(np.nanmax(seen.largest_ms)),
        worst_request=int(streams.request[np.nanargmax(seen.ms)]) if measured.any() else None,
        too_few_quiet_gaps=int((seen.status == STATUSES.index(PauseStatus.TOO_FEW_QUIET_GAPS)).sum()),
        broke=int((seen.status == STATUSES.index(PauseStatus.BROKEN)).sum()),
        censored=int((seen.censored & measured).sum()),
        silence_ms=_silence_ms(streams, touched, mark),
    )


def _silence_ms(streams: Streams, touched: Bools, mark: MarkRow) -> float | None:
    """Longest gap between the tokens of the touched streams, taken as one, that overlaps the mark."""
    at_ns = streams.at_ns[touched[streams.stream_of_token]]
    before, after = at_ns[at_ns <= mark.start_ns], at_ns[at_ns >= mark.end_ns]
    within = np.sort(at_ns[(at_ns > mark.start_ns) & (at_ns < mark.end_ns)])
    moments = np.concatenate(
        (before.max(keepdims=True, initial=NONE), within, after.min(keepdims=True, initial=_NEVER))
    )
    moments = moments[(moments != NONE) & (moments != _NEVER)]
    start, end = moments[:-1], moments[1:]
    overlapping = (start < mark.end_ns) & (mark.start_ns < end)
    return float((end - start)[overlapping].max()) / 1e6 if overlapping.any() else None
