"""The figures of a set of streams.

Definitions, all in milliseconds unless said:

- latencies are counted from the moment a request was *due*, where the plan gave one, else from when it was sent. A
  generator or a server that is late thereby pays for it (no coordinated omission). `..._from_sent` counts from sending.
- TTFT: to the first token. E2E: to the end of the stream.
- TPOT: (last token - first token) / (tokens - 1), for streams of two tokens or more.
- ITL: every gap between two consecutive tokens. Tokens of one chunk have gaps of 0 between them, because a user sees
  them together; the chunk gap leaves these out and is what to compare servers by that send several tokens at once.
- largest gap: of each stream (`Streams.largest_gap_ns`).
- throughput: tokens, and finished requests, per second, over the time from the first moment a request was due (or sent)
  to the last end.
- goodput: finished requests per second, over the same time, that meet every part of the stated service level. An answer
  of one token has no TPOT and meets any.

Which streams enter: TTFT, TPOT, ITL and gaps are those of streams that finished or that the generator itself cancelled
at the end, as far as they have them; E2E only of finished ones. Broken streams enter none of these: they are counted by
outcome, and their own largest gap, up to their end, stands apart. Every distribution carries its n.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from loadgen.results.columns import OUTCOMES
from loadgen.results.manifest import Slo
from loadgen.results.streams import NONE, UNKNOWN, Bools, Floats, Int64, Streams

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
_HISTOGRAM_FROM, _HISTOGRAM_DECADES, _BINS_PER_DECADE = 0.1, 6, 10  # 0.1 ms to 100 s


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A set of values: how many, and how they lie. Percentiles are interpolated linearly between neighbours."""

    n: int
    mean: float
    std: float
    min: float
    p1: float
    p5: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float


class GapHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Gaps between tokens in bins of equal width on a logarithmic axis.

    Attributes:
        edges_ms: Edges of the bins, one more than bins; each bin holds its lower edge and not its upper one.
        counts: Gaps in each bin.
        in_chunk: Gaps of 0 within chunks, in no bin.
        below: Other gaps below the first edge.
        above: Gaps at or above the last edge.
    """

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]
    in_chunk: int
    below: int
    above: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a set of streams; the module says how each is defined. None: no stream has one.

    Attributes:
        requests: Requests that ended, in whichever way.
        outcomes: How many ended how; only what occurred.
        broken: Those that neither finished nor were cancelled by the generator.
        unended: Streams that had tokens but had not ended when the run was killed or looked at.
        no_first_token: Cancelled before their first token: their TTFT is longer than they waited, and in no figure.
        span_s: Time that throughput is counted over, in seconds.
        prompt_tokens: Of finished requests; None if some did not tell.
        output_tokens: Every token that arrived, of broken streams too.
        tokens_per_chunk: Mean over all chunks with tokens.
        miscounted: Finished streams of which the server counted other tokens than arrived.
    """

    requests: int
    outcomes: dict[str, int]
    broken: int
    unended: int
    no_first_token: int
    span_s: float
    prompt_tokens: int | None
    output_tokens: int
    tokens_per_chunk: float | None
    miscounted: int
    output_tokens_per_s: float | None
    requests_per_s: float | None
    good: int | None
    goodput_per_s: float | None
    ttft_ms: Distribution | None
    ttft_from_sent_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    chunk_gap_ms: Distribution | None
    e2e_ms: Distribution | None
    e2e_from_sent_ms: Distribution | None
    largest_gap_ms: Distribution | None
    broken_largest_gap_ms: Distribution | None


def distribution(values: Floats) -> Distribution | None:
    """Return how the values lie; None if there are none."""
    if not len(values):
        return None
    at = dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True))
    return Distribution(
        n=len(values),
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        p1=at[1],
        p5=at[5],
        p10=at[10],
        p25=at[25],
        p50=at[50],
        p75=at[75],
        p90=at[90],
        p95=at[95],
        p99=at[99],
        p99_9=at[99.9],
        max=float(values.max()),
    )


def gap_histogram(streams: Streams) -> GapHistogram:
    """Return how long the gaps are of streams that finished or were cancelled."""
    gaps = streams.gaps
    counted = counted_streams(streams)[gaps.stream]
    ms = gaps.ns[counted & ~gaps.in_chunk] / 1e6
    exponents = np.arange(_HISTOGRAM_DECADES * _BINS_PER_DECADE + 1) / _BINS_PER_DECADE
    edges = _HISTOGRAM_FROM * 10.0**exponents
    positions = np.searchsorted(edges, ms, side="right")
    counts = np.bincount(positions, minlength=len(edges) + 1)
    return GapHistogram(
        edges_ms=tuple(edges.tolist()),
        counts=tuple(counts[1:-1].tolist()),
        in_chunk=int((counted & gaps.in_chunk).sum()),
        below=int(counts[0]),
        above=int(counts[-1]),
    )


def counted_streams(streams: Streams) -> Bools:
    """Return which streams enter latencies: all but broken ones."""
    return ~streams.broken


def ttft_ms(streams: Streams, *, origin_ns: Int64 | None = None) -> Floats:
    """Return the TTFT of every stream, NaN where it has none; `origin_ns` counts from elsewhere than what is due."""
    return _ms(streams.first_ns, streams.origin_ns if origin_ns is None else origin_ns)


def tpot_ms(streams: Streams) -> Floats:
    """Return the TPOT of every stream, NaN for one with less than two tokens."""
    steps = np.maximum(streams.count - 1, 1)
    return np.where(streams.count > 1, _ms(streams.last_ns, streams.first_ns) / steps, np.nan)


def e2e_ms(streams: Streams, *, origin_ns: Int64 | None = None) -> Floats:
    """Return the time to the end of every finished stream, NaN for others."""
    whole = _ms(streams.ended_ns, streams.origin_ns if origin_ns is None else origin_ns)
    return np.where(streams.finished, whole, np.nan)


def largest_gap_ms(streams: Streams) -> Floats:
    """Return the largest gap of every stream that is not broken, NaN where it has none."""
    return np.where(counted_streams(streams) & (streams.largest_gap_ns != NONE), streams.largest_gap_ns / 1e6, np.nan)


def meets(streams: Streams, slo: Slo) -> Bools:
    """Return which streams finished and met every stated part of the service level."""
    good = streams.finished.copy()
    for limit, values in (
        (slo.ttft_ms, ttft_ms(streams)),
        (slo.tpot_ms, tpot_ms(streams)),
        (slo.e2e_ms, e2e_ms(streams)),
    ):
        if limit is not None:
            good &= ~(values > limit)
    if slo.ttft_ms is not None:
        good &= streams.first_ns != NONE
    return good


def figures(streams: Streams, slo: Slo, members: Bools | None = None) -> Figures:
    """Return the figures of the streams, only of `members` if given (a phase of the workload)."""
    members = np.ones(len(streams), dtype=np.bool_) if members is None else members
    counted = counted_streams(streams) & members
    ended = streams.known & members
    span_s = _span_s(streams, members)
    finished = streams.finished & members
    gaps = streams.gaps
    gap_counted = counted[gaps.stream]
    itl = gaps.ns[gap_counted] / 1e6
    good = int((meets(streams, slo) & members).sum()) if slo.stated else None
    tokens = int(streams.count[members].sum())
    prompts = streams.prompt_tokens[finished]
    told = finished & (streams.reported_tokens >= 0)
    broken = streams.broken & members

    def of(values: Floats) -> Distribution | None:
        chosen = values[counted]
        return distribution(chosen[~np.isnan(chosen)])

    return Figures(
        requests=int(ended.sum()),
        outcomes=_outcomes(streams.outcome[ended]),
        broken=int(broken.sum()),
        unended=int((members & ~streams.known).sum()),
        no_first_token=int((members & streams.cancelled & (streams.first_ns == NONE)).sum()),
        span_s=span_s,
        prompt_tokens=int(prompts.sum()) if prompts.size and (prompts >= 0).all() else None,
        output_tokens=tokens,
        tokens_per_chunk=_tokens_per_chunk(streams, members, tokens),
        miscounted=int((streams.reported_tokens[told] != streams.count[told]).sum()),
        output_tokens_per_s=_rate(tokens, span_s),
        requests_per_s=_rate(int(finished.sum()), span_s),
        good=good,
        goodput_per_s=None if good is None else _rate(good, span_s),
        ttft_ms=of(ttft_ms(streams)),
        ttft_from_sent_ms=of(ttft_ms(streams, origin_ns=streams.sent_ns)),
        tpot_ms=of(tpot_ms(streams)),
        itl_ms=distribution(itl),
        chunk_gap_ms=distribution(itl[~gaps.in_chunk[gap_counted]]),
        e2e_ms=of(e2e_ms(streams)),
        e2e_from_sent_ms=of(e2e_ms(streams, origin_ns=streams.sent_ns)),
        largest_gap_ms=of(largest_gap_ms(streams)),
        broken_largest_gap_ms=distribution(_broken_gaps_ms(streams)[broken]),
    )


def phase_figures(streams: Streams, slo: Slo) -> Mapping[str, Figures]:
    """Return the figures of each phase of the workload, in order of appearance; empty without phases."""
    names = list(dict.fromkeys(name for name in streams.phase.tolist() if name is not None))
    return {name: figures(streams, slo, streams.phase == name) for name in names}


def _ms(later: Int64, earlier: Int64) -> Floats:
    there = (later != NONE) & (earlier != NONE)
    difference = np.where(there, later, 0) - np.where(there, earlier, 0)
    ms: Floats = np.where(there, difference / 1e6, np.nan)
    return ms


def _span_s(streams: Streams, members: Bools) -> float:
    known, having = streams.known & members, (streams.count > 0) & members
    starts = np.concatenate((streams.origin_ns[known], streams.first_ns[having]))
    ends = np.concatenate((streams.ended_ns[known], streams.last_ns[having]))
    return float(ends.max() - starts.min()) / 1e9 if starts.size else 0.0


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _outcomes(codes: Int64) -> dict[str, int]:
    counts = np.bincount(codes[codes != UNKNOWN], minlength=len(OUTCOMES)).tolist()
    return {name: count for name, count in zip(OUTCOMES, counts, strict=True) if count}


def _tokens_per_chunk(streams: Streams, members: Bools, tokens: int) -> float | None:
    further = int((streams.gaps.in_chunk & members[streams.gaps.stream]).sum())
    return tokens / (tokens - further) if tokens else None


def _broken_gaps_ms(streams: Streams) -> Floats:
    """Largest gap of each stream with the one that its end cut off."""
    there = (streams.open_ns != NONE) & (streams.ended_ns != NONE)
    to_end = np.where(there, streams.ended_ns, 0) - np.where(there, streams.open_ns, 0)
    ms: Floats = np.maximum(streams.largest_gap_ns, to_end) / 1e6
    return ms
