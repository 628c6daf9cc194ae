"""All streams of a run as flat arrays, so that millions of tokens cost milliseconds.

Streams are numbered 0 to S-1 in the order of their request's index. The tokens of stream s are
`at_ns[offsets[s]:offsets[s + 1]]`. A stream without a row in the table of requests (it had not ended when the run was
killed, or is still going on) has tokens and nothing else: `known` is false, it has no moment of sending and no end.

A moment that is not there is `NONE`. Moments are never floats: subtracting hours in nanoseconds must be exact.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from loadgen.results.columns import CANCELLED, FINISHED, OUTCOMES
from loadgen.results.errors import ResultsError
from loadgen.results.reader import Run

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

NONE: Final = np.iinfo(np.int64).min
UNKNOWN: Final = -1  # outcome code of a stream without a row


@dataclass(frozen=True)
class Gaps:
    """Every gap between two consecutive tokens of one stream, in order of stream and time.

    Attributes:
        stream: Number of the stream.
        start_ns: Arrival of the earlier token.
        end_ns: Arrival of the later one.
        in_chunk: Whether both came in one chunk (such a gap is 0).
    """

    stream: Int64
    start_ns: Int64
    end_ns: Int64
    in_chunk: Bools

    @cached_property
    def ns(self) -> Int64:
        """Lengths."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class Streams:
    """The streams of a run.

    Attributes:
        request: Index of the request in the plan.
        known: Whether there is a row of the request.
        outcome: Position in `OUTCOMES`, `UNKNOWN` without a row.
        phase: Name of the phase, None if it has none.
        due_ns, sent_ns, first_ns, last_ns, ended_ns: Moments; NONE if there is none. First and last: of tokens.
        count: Tokens.
        prompt_tokens, reported_tokens: -1 if not told.
        output_tokens: As the row says.
        offsets: Where the stream's tokens begin in the arrays below; one longer than the others.
        at_ns, chunk: Arrival and chunk of each token.
    """

    request: Int64
    known: Bools
    outcome: Int64
    phase: npt.NDArray[np.object_]
    due_ns: Int64
    sent_ns: Int64
    first_ns: Int64
    last_ns: Int64
    ended_ns: Int64
    count: Int64
    prompt_tokens: Int64
    reported_tokens: Int64
    output_tokens: Int64
    offsets: Int64
    at_ns: Int64
    chunk: Int32

    def __len__(self) -> int:
        return len(self.request)

    @cached_property
    def origin_ns(self) -> Int64:
        """What latencies are counted from: the intended moment of sending where there is one, else the actual one."""
        return np.where(self.due_ns == NONE, self.sent_ns, self.due_ns)

    @cached_property
    def finished(self) -> Bools:
        """Whether the stream ended as it should."""
        return np.equal(self.outcome, OUTCOMES.index(FINISHED))

    @cached_property
    def cancelled(self) -> Bools:
        """Whether the generator itself ended the stream, because the run was over."""
        return np.equal(self.outcome, OUTCOMES.index(CANCELLED))

    @cached_property
    def broken(self) -> Bools:
        """Whether the stream ended in any other way than finished or cancelled."""
        return self.known & ~self.finished & ~self.cancelled

    @cached_property
    def open_ns(self) -> Int64:
        """Where the gap begins that no token ended: at the last token, or else at the sending; NONE without both."""
        return np.where(self.last_ns == NONE, self.sent_ns, self.last_ns)

    @cached_property
    def stream_of_token(self) -> Int64:
        """Number of the stream of each token."""
        return np.repeat(np.arange(len(self)), self.count)

    @cached_property
    def gaps(self) -> Gaps:
        """Every gap between tokens."""
        stream = self.stream_of_token
        same = stream[1:] == stream[:-1]
        return Gaps(
            stream=stream[1:][same],
            start_ns=self.at_ns[:-1][same],
            end_ns=self.at_ns[1:][same],
            in_chunk=(self.chunk[1:] == self.chunk[:-1])[same],
        )

    @cached_property
    def largest_gap_ns(self) -> Int64:
        """Largest gap of each stream, NONE for a stream without one.

        For a stream that was cancelled the wait between its last token and the end counts as a gap: it is a lower bound
        of what its user would have seen, and a run that ends in a stall must not look better than one that does not.
        A stream that was cancelled before its first token has no gap but a first token that was never seen.
        """
        largest = np.full(len(self), NONE, dtype=np.int64)
        starts = self.offsets[:-1] - np.concatenate(([0], np.cumsum(self.count > 0)))[:-1]
        having = self.count > 1
        if having.any():
            largest[having] = np.maximum.reduceat(self.gaps.ns, starts[having])
        waiting = self.cancelled & (self.count > 0)
        largest[waiting] = np.maximum(largest[waiting], self.ended_ns[waiting] - self.last_ns[waiting])
        return largest

    @cached_property
    def largest_gap_at_ns(self) -> Int64:
        """Where each stream's largest gap (the first, of equal ones) begins; NONE for a stream without one."""
        where = np.full(len(self), NONE, dtype=np.int64)
        gaps = self.gaps
        found = np.flatnonzero(gaps.ns == self.largest_gap_ns[gaps.stream])
        streams, first = np.unique(gaps.stream[found], return_index=True)
        where[streams] = gaps.start_ns[found[first]]
        open_ended = (where == NONE) & (self.largest_gap_ns != NONE)
        where[open_ended] = self.last_ns[open_ended]
        return where

    @cached_property
    def span_ns(self) -> tuple[int, int] | None:
        """From the first moment at which a request was due (or sent) to the last end; None without a request.

        For streams that have not ended, their tokens count.
        """
        starts = [self.origin_ns[self.known], self.at_ns[self.offsets[:-1][self.count > 0]]]
        ends = [self.ended_ns[self.known], self.last_ns[self.count > 0]]
        if not sum(map(len, starts)):
            return None
        return int(np.concatenate(starts).min()), int(np.concatenate(ends).max())


def streams_of(run: Run) -> Streams:
    """Return the run's streams.

    Raises:
        ResultsError: the tables contradict themselves: a request twice, tokens missing, out of order or back in time.
    """
    where = f"{run.folder}: "
    index = _ints(run.requests, "request")
    order = np.argsort(index, kind="stable")
    index = index[order]
    if (twice := index[1:][index[1:] == index[:-1]]).size:
        raise ResultsError(f"{where}request {twice[0]} has two rows: the tables are damaged")
    token_request = _ints(run.tokens, "request")
    token_order = np.argsort(token_request, kind="stable")  # keeps the order of arrival within a stream
    token_request = token_request[token_order]
    position = _ints(run.tokens, "index")[token_order]
    at_ns = _ints(run.tokens, "at_ns")[token_order]
    request = np.union1d(index, token_request)
    offsets = np.searchsorted(token_request, np.append(request, np.iinfo(np.int64).max))
    count = np.diff(offsets)
    row = np.searchsorted(request, index)  # the stream of each row
    _check_tokens(where, token_request, position, at_ns, offsets)

    def spread(name: str, missing: int) -> Int64:
        values = np.full(len(request), missing, dtype=np.int64)
        values[row] = _ints(run.requests, name, missing)[order]
        return values

    known = np.zeros(len(request), dtype=np.bool_)
    known[row] = True
    outcome = np.full(len(request), UNKNOWN, dtype=np.int64)
    outcome[row] = _outcome_codes(run)[order]
    phase = np.full(len(request), None, dtype=np.object_)
    phase[row] = np.array(run.requests.column("phase").to_pylist(), dtype=np.object_)[order]
    first_ns = spread("first_token_ns", NONE)
    last_ns = np.full(len(request), NONE, dtype=np.int64)
    having = count > 0
    first_ns[having] = at_ns[offsets[:-1][having]]
    last_ns[having] = at_ns[offsets[1:][having] - 1]
    return Streams(
        request=request,
        known=known,
        outcome=outcome,
        phase=phase,
        due_ns=spread("due_ns", NONE),
        sent_ns=spread("sent_ns", NONE),
        first_ns=first_ns,
        last_ns=last_ns,
        ended_ns=spread("ended_ns", NONE),
        count=count,
        prompt_tokens=spread("prompt_tokens", -1),
        reported_tokens=spread("reported_tokens", -1),
        output_tokens=spread("output_tokens", 0),
        offsets=offsets,
        at_ns=at_ns,
        chunk=_ints(run.tokens, "chunk")[token_order].astype(np.int32),
    )


def _ints(table: pa.Table, column: str, missing: int = 0) -> Int64:
    values = pa.compute.fill_null(table.column(column).cast(pa.int64()), missing)
    array: npt.NDArray[Any] = values.to_numpy()
    return array.astype(np.int64, copy=False)


def _outcome_codes(run: Run) -> Int64:
    column = run.requests.column("outcome")
    codes: Int64 = pa.compute.index_in(column, pa.array(OUTCOMES)).fill_null(UNKNOWN).to_numpy().astype(np.int64)
    if (strange := np.flatnonzero(codes == UNKNOWN)).size:
        name = column[int(strange[0])].as_py()
        raise ResultsError(f"{run.folder}: outcome {name!r} is none of {', '.join(OUTCOMES)}")
    return codes


def _check_tokens(where: str, request: Int64, position: Int64, at_ns: Int64, offsets: Int64) -> None:
    expected = np.arange(len(request)) - np.repeat(offsets[:-1], np.diff(offsets))
    if (wrong := np.flatnonzero(position != expected)).size:
        first = wrong[0]
        raise ResultsError(
            f"{where}request {request[first]}: token {position[first]} where token {expected[first]} should be: "
            "the table of tokens is damaged"
        )
    back = np.flatnonzero((np.diff(at_ns) < 0) & (request[1:] == request[:-1]))
    if back.size:
        first = back[0] + 1
        raise ResultsError(f"{where}request {request[first]}: token {position[first]} arrived before the one before it")
