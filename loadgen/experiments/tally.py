"""Passes what a run measures on to its folder and counts it on the way: for a display, and for who waits for tokens.

Must be used from the event loop alone. Tokens come in batches every fifth of a second (`loadgen.streaming.runner`), so
whoever waits for a number of them learns of it that much later.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from loadgen.results.columns import FINISHED, LAG_SAMPLE, MarkRow, RequestRow
from loadgen.results.writer import RunWriter
from loadgen.streaming.lateness import Lateness

_CANCELLED = "cancelled"
_RATE_OVER_NS = 3_000_000_000
_LATEST = 1000  # of the waits for a first token, for their median


class Tally:
    """Counts of one run.

    Attributes:
        arrived: Tokens.
        finished, broken: Requests that ended as they should, or otherwise than finished and cancelled.
        largest_gap_ns: Largest gap between two tokens of one stream; 0 before there is one.
        last_mark: Name of the mark that came last.
    """

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._waiting: list[tuple[int, asyncio.Event]] = []
        self._last_token: dict[int, int] = {}
        self._batches: deque[tuple[int, int]] = deque()
        self._first_tokens_ms: deque[float] = deque(maxlen=_LATEST)
        self._lag = Lateness()
        self.arrived = 0
        self.finished = 0
        self.broken = 0
        self.largest_gap_ns = 0
        self.last_mark: str | None = None

    def tokens(
        self,
        request: int,
        first_index: int,
        at_ns: Sequence[int],
        chunk: Sequence[int],
        ids: Sequence[int] | None = None,
    ) -> None:
        """Take consecutive tokens of one request."""
        self._writer.tokens(request, first_index, at_ns, chunk, ids)
        before = self._last_token.get(request, at_ns[0])
        largest = max((later - earlier for earlier, later in pairwise((before, *at_ns))), default=0)
        self.largest_gap_ns = max(self.largest_gap_ns, largest)
        self._last_token[request] = at_ns[-1]
        self._batches.append((at_ns[-1], len(at_ns)))
        self.arrived += len(at_ns)
        for count, reached in self._waiting:
            if self.arrived >= count:
                reached.set()

    def request(self, row: RequestRow) -> None:
        """Take a request that has ended."""
        self._writer.request(row)
        self._last_token.pop(row.request, None)
        self.finished += row.outcome == FINISHED
        self.broken += row.outcome not in {FINISHED, _CANCELLED}
        if row.first_token_ns is not None:
            since = row.sent_ns if row.due_ns is None else row.due_ns
            self._first_tokens_ms.append((row.first_token_ns - since) / 1e6)

    def mark(self, row: MarkRow) -> None:
        """Take a marked moment or stretch."""
        self._writer.mark(row)
        self.last_mark = row.name

    def sample(self, name: str, at_ns: int, value: float) -> None:
        """Take one value of a named series."""
        self._writer.sample(name, at_ns, value)
        if name == LAG_SAMPLE:
            self._lag.add(round(value * 1e6))

    async def until_tokens(self, count: int) -> None:
        """Wait until so many tokens have arrived."""
        if self.arrived >= count:
            return
        waiting = (count, asyncio.Event())
        self._waiting.append(waiting)
        try:
            await waiting[1].wait()
        finally:
            self._waiting.remove(waiting)

    def tokens_per_s(self, now_ns: int) -> float:
        """Return the tokens per second over the last few seconds before a moment of the run's axis."""
        since = now_ns - _RATE_OVER_NS
        while self._batches and self._batches[0][0] < since:
            self._batches.popleft()
        over = min(_RATE_OVER_NS, now_ns)
        return sum(count for _, count in self._batches) * 1e9 / over if over > 0 else 0.0

    def ttft_p50_ms(self) -> float | None:
        """Return the median wait for a first token of the latest requests that ended; None without one."""
        return median(self._first_tokens_ms) if self._first_tokens_ms else None

    def lag_p99_ms(self) -> float | None:
        """Return the lateness of the generator's own event loop so far; None before it was sampled."""
        return self._lag.percentile_ms(99) if self._lag.count else None
